"""The form in which a pass takes less time is kept, whichever it is, and what was measured is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.rl.fastest import compare, settle, shortest
from common.rl.networks import Inputs, Trunk
from common.rl.policy import Policy, build_policy
from common.rl.processor import has_bf16
from common.types import ActionSpec, ArraySpec, EnvSpec

ENV = EnvSpec("a", (ArraySpec("image", "|u1", (4, 10, 10)),), ActionSpec("discrete", "<i8", (), (3,)))


def built(**network: Any) -> Policy:
    return build_policy({"name": "minatar_cnn", **network}, ENV, seed=1)


class Clock:
    """Time that passes only when something takes it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("last", [True, False])
def test_the_faster_format_is_kept_and_both_figures_are_said(last: bool) -> None:
    policy, clock = built(), Clock()
    taken: list[tuple[bool, bool]] = []

    def act() -> None:
        form = policy.inputs.channels_last, policy.actor.bf16
        taken.append(form)
        clock.take((0.001 if form[0] == last else 0.004) * (0.5 if form[1] else 1.0))

    said = settle(policy, act, 7, clock)
    assert policy.inputs.channels_last is last
    assert not policy.actor.bf16
    names = ("channels_last", "contiguous") if last else ("contiguous", "channels_last")
    assert said.startswith(f"{names[0]} images: 1.00 ms for 7 rows, {names[1]} 4.00 ms")
    lowered = has_bf16(torch.device("cpu"))
    assert set(taken) == {(form, low) for form in (True, False) for low in ((False, True) if lowered else (False,))}
    assert ("network.bf16=true, for all roles, would take 0.50 ms" in said) is lowered


def test_a_real_pass_gives_the_same_afterwards_but_for_rounding() -> None:
    policy = built()
    images = {"image": torch.arange(5 * 400, dtype=torch.uint8).reshape(5, 4, 10, 10)}
    with torch.inference_mode():
        before = policy.evaluate(images)[1]
        assert settle(policy, lambda: policy.evaluate(images)[1].numpy(), rows=5)
        torch.testing.assert_close(policy.evaluate(images)[1], before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "network", [{"channels_last": False}, {"channels_last": True}, {"name": "mlp"}, {"compile": True}]
)
def test_what_the_config_says_has_no_image_or_is_compiled_is_left_alone(network: dict[str, Any]) -> None:
    policy = built(**network)

    def never() -> None:
        raise AssertionError("there was nothing to time")

    assert settle(policy, never, rows=7) == ""
    assert policy.inputs.channels_last is network.get("channels_last")


def test_bfloat16_stays_where_it_was_set() -> None:
    policy = built(bf16=True)
    seen = set()

    def act() -> None:
        seen.add((policy.inputs.channels_last, policy.actor.bf16))

    assert "bf16" not in settle(policy, act, rows=7)
    assert seen == {(True, True), (False, True)}
    assert policy.actor.bf16


def test_passes_take_turns_so_that_a_slow_spell_falls_on_all() -> None:
    order: list[str] = []
    clock = Clock()
    slow = {4: 9.0, 5: 9.0}

    def one(name: str, seconds: float) -> None:
        clock.take(slow.get(len(order), seconds))
        order.append(name)

    assert shortest([lambda: one("a", 0.125), lambda: one("b", 0.25)], clock) == [0.125, 0.25]
    # Once each to warm up, then at least three times in turn; the slow spell has used up the rest of the budget.
    assert order == ["a", "b"] * 4


def test_every_image_of_every_part_of_an_actor_changes_at_once() -> None:
    policy, clock = built(shared=False), Clock()
    settle(policy, lambda: clock.take(0.001 if policy.inputs.channels_last else 0.003), 7, clock)
    modules = list(policy.modules())
    assert [x.channels_last for x in modules if isinstance(x, Inputs)] == [True]
    assert [x.bf16 for x in modules if isinstance(x, Trunk)] == [False, False]


@pytest.mark.parametrize("faster", ["numpy", "torch"])
def test_the_faster_of_numpy_and_torch_is_named_with_both_figures(faster: str) -> None:
    clock = Clock()
    times = {"torch": 0.002, "numpy": 0.002} | {faster: 0.0005}
    passes = [lambda name=name: clock.take(times[name]) for name in ("torch", "numpy")]
    other = "torch" if faster == "numpy" else "numpy"
    said = f"{faster}: 0.50 ms for 64 rows, {other} 2.00 ms"
    assert compare(*passes, 64, clock) == (said, faster == "numpy")
