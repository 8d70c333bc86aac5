"""A compiled encoder gives what the plain one gives, follows its weights, and gives way where it cannot be compiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from common.rl.actor import pack_weights, unpack_weights, weights_layout
from common.rl.algorithms.base import FlatOptimizer, OptimizerConfig
from common.rl.compiled import Compiled
from common.rl.policy import Policy, build_policy
from common.rl.target import Target
from common.types import ActionSpec, ArraySpec, EnvSpec

# Torch itself calls what it has deprecated, when it compiles.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
ENV = EnvSpec("a", (ArraySpec("image", "|u1", (4, 6, 6)),), ActionSpec("discrete", "<i8", (), (3,)))


def built(compiled: bool, name: str = "minatar_cnn", env: EnvSpec = ENV) -> Policy:
    return build_policy({"name": name, "shared": True, "compile": compiled}, env, seed=1)


def images(rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {"image": torch.randint(0, 255, (rows, 4, 6, 6), dtype=torch.uint8, generator=generator)}


def loss(policy: Policy, rows: int) -> Tensor:
    distribution, value = policy.evaluate(images(rows))
    return value.square().mean() + distribution.parameters().square().mean()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    monkeypatch.setattr("torch._functorch.config.enable_autograd_cache", False)
    yield
    torch._dynamo.reset()


def test_a_compiled_policy_acts_and_learns_as_the_plain_one_through_updates_and_loads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "headrace.network")
    pair = [built(True), built(False)]
    optimizers = [FlatOptimizer(OptimizerConfig(lr=0.1), policy) for policy in pair]

    def compare(rows: int) -> None:
        x = images(rows)
        with torch.inference_mode():
            acted, plain = (policy.evaluate(x) for policy in pair)
        torch.testing.assert_close(acted[1], plain[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(acted[0].parameters(), plain[0].parameters(), atol=1e-5, rtol=1e-5)
        (ours, _), (theirs, _) = (o.gradient(loss(p, rows)) for o, p in zip(optimizers, pair, strict=True))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    compare(8)
    before = pair[0].evaluate(images(8))[1].detach()
    for policy, optimizer in zip(pair, optimizers, strict=True):
        optimizer.step(loss(policy, 8), 0.1)
    assert not torch.allclose(pair[0].evaluate(images(8))[1], before, atol=0.1)
    compare(5)
    for policy in pair:
        unpack_weights(policy, pack_weights(build_policy({"name": "minatar_cnn", "shared": True}, ENV, seed=2)))
    compare(8)
    said = [message for message in caplog.messages if message.startswith("network.compile: the encoder of image")]
    assert ["compiled in" in message for message in said] == [True, True]
    assert ["forward and backward of 8 rows" in message for message in said] == [False, True]


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_plain_pass_goes_on_and_a_warning_says_why(caplog: pytest.LogCaptureFixture) -> None:
    compiled, plain = built(True), built(False)
    for _ in range(2):
        with torch.inference_mode():
            assert torch.equal(compiled.evaluate(images(4))[1], plain.evaluate(images(4))[1])
    (warning,) = [record for record in caplog.records if record.name == "headrace.network"]
    assert warning.levelname == "WARNING"
    assert "the encoder of image runs uncompiled" in warning.message
    assert "no-such-compiler" in warning.message


def test_an_error_of_the_module_itself_is_raised_as_it_is() -> None:
    compiled = Compiled(nn.Linear(3, 2), "it")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compiled(torch.zeros(4, 5))


def test_weights_keep_their_names_and_a_single_row_is_not_compiled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.network")
    compiled, plain = built(True), built(False)
    assert weights_layout(compiled) == weights_layout(plain)
    assert torch.equal(compiled.evaluate(images(1))[1], plain.evaluate(images(1))[1])
    assert caplog.messages == []


def test_a_copy_of_a_compiled_network_runs_on_its_own_weights() -> None:
    policy = built(True)
    target = Target(policy)
    target.flat.zero_()
    assert target.network.evaluate(images(1))[1].tolist() == [0.0]
    assert policy.evaluate(images(1))[1].tolist() != [0.0]


def test_where_there_is_nothing_to_compile_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    flat = EnvSpec("a", (ArraySpec("obs", "<f4", (4,)),), ENV.action)
    built(True, "mlp", flat)
    (warning,) = caplog.messages
    assert "network.compile=true: there is nothing to compile" in warning
