"""TD3's and DDPG's targets and delays by hand."""

import math
from typing import Any

import pytest
import torch
from by_hand import BOX, TWO, WIDE, build, critics, env, transitions

from common.errors import ConfigError
from common.rl.action_noise import MEMORY
from common.rl.actor import Seen
from common.rl.algorithms.base import NonFiniteUpdate
from common.rl.algorithms.td3 import DDPG, TD3, DDPGConfig, TD3Config
from common.rl.settings import read_settings
from common.types import ArraySpec

ZERO = critics([[0.0], [0.0]])


def test_the_target_is_the_least_of_the_target_critics_at_the_target_policy() -> None:
    # Target critics say a + 3 and a + 2, the target policy 0.5 where the policy says 0.
    target = critics([[3.0], [2.0]], slope=1.0)
    options: dict[str, Any] = {"target_outputs": [math.atanh(0.5)], "smoothing": 0.0}
    _, td3 = build("td3", BOX, [0.0], critics([[1.0], [0.0]]), target, **options)
    metrics = td3.learn(transitions([0.1, 0.1], [1.0, 1.0], [0.5, 0.0]), 0.0)
    # y = 1 + 0.5 · 2.5 = 2.25, and 1, where the critics say 1 and 0.
    assert td3.priorities.tolist() == pytest.approx([(1.25 + 2.25) / 2.0, 0.5], abs=1e-5)
    assert metrics["critic_loss"] == pytest.approx(0.5 * (1.25**2 + 2.25**2 + 1.0) / 2.0, abs=1e-5)
    assert metrics["q"] == pytest.approx(0.5)


def test_smoothing_is_cut_and_so_is_the_smoothed_action() -> None:
    online, target = critics([[-5.0], [-5.0]]), critics([[0.0], [0.0]], slope=1.0)
    for said, low, high in ((0.0, -0.5, 0.5), (0.8, 0.3, 1.0)):
        options: dict[str, Any] = {"target_outputs": [math.atanh(said)], "smoothing": 1e4}
        _, td3 = build("td3", BOX, [0.0], online, target, **options)
        n = 200
        td3.learn(transitions([0.0] * n, [0.0] * n, [1.0] * n), 0.0)
        found = td3.priorities - 5.0
        assert found.min().item() == pytest.approx(low, abs=1e-5)
        assert found.max().item() == pytest.approx(high, abs=1e-5)
        assert 60 < (found < 0.5 * (low + high)).sum() < 140


def test_smoothing_has_the_spread_that_is_set() -> None:
    online, target = critics([[-5.0], [-5.0]]), critics([[0.0], [0.0]], slope=1.0)
    _, td3 = build("td3", BOX, [0.0], online, target, [0.0], smoothing=0.1)
    n = 10000
    td3.learn(transitions([0.0] * n, [0.0] * n, [1.0] * n), 0.0)
    assert td3.priorities.std().item() == pytest.approx(0.1, rel=0.03)
    assert td3.priorities.mean().item() == pytest.approx(5.0, abs=0.005)


def test_each_update_has_noise_of_its_own() -> None:
    online, target = critics([[-5.0], [-5.0]]), critics([[0.0], [0.0]], slope=1.0)
    _, td3 = build("td3", BOX, [0.0], online, target, [0.0])
    orders = []
    for _ in range(2):
        td3.learn(transitions([0.0] * 64, [0.0] * 64, [1.0] * 64), 0.0)
        orders.append(td3.priorities.argsort().tolist())
    assert orders[0] != orders[1]


def test_policy_and_targets_move_every_second_update() -> None:
    online, target = critics([[0.0], [0.0]], slope=1.0), critics([[3.0], [2.0]])
    actor, td3 = build("td3", BOX, [0.0], online, target, [1.0], tau=0.25)
    batch = transitions([0.0], [0.0], [0.0])
    td3.learn(batch, 0.0)
    said = list(actor.parameters())[-1]
    first = td3.state_dict()
    assert said.item() == 0.0
    torch.testing.assert_close(first["target"], target, rtol=0, atol=0)
    assert first["actor_target"][-1].item() == 1.0
    td3.learn(batch, 0.0)
    second = td3.state_dict()
    assert said.item() == pytest.approx(0.01, abs=1e-5)
    torch.testing.assert_close(second["target"], target + 0.25 * (second["critics"] - target))
    assert second["actor_target"][-1].item() == pytest.approx(0.75 + 0.25 * 0.01, abs=1e-5)


def test_the_policy_goes_up_the_first_critic() -> None:
    # Parameters of two critics with slopes 1 and -4, of which the second is the lower.
    online = critics([[0.0], [-9.0]], slope=1.0)
    online[7] = -4.0
    actor, td3 = build("td3", BOX, [0.0], online, ZERO, policy_delay=1)
    metrics = td3.learn(transitions([0.0], [0.0], [0.0]), 0.0)
    assert list(actor.parameters())[-1].item() == pytest.approx(0.01, abs=1e-5)
    assert metrics["actor_loss"] == pytest.approx(0.0, abs=1e-6)
    # d Q / d output = 1 - tanh²(0), for the bias; nothing else is above zero.
    assert metrics["actor_grad_norm"] == pytest.approx(1.0, abs=1e-5)


def test_ddpg_has_one_critic_and_neither_delay_nor_smoothing() -> None:
    online, target = critics([[1.0]], slope=1.0), critics([[3.0]], slope=1.0)
    actor, ddpg = build("ddpg", BOX, [0.0], online, target, target_outputs=[math.atanh(0.5)])
    ddpg.learn(transitions([0.25], [1.0], [0.5]), 0.0)
    # y = 1 + 0.5 · 3.5 for Q = 1.25
    assert ddpg.priorities.tolist() == pytest.approx([1.5], abs=1e-5)
    assert list(actor.parameters())[-1].item() == pytest.approx(0.01, abs=1e-5)
    assert [spec.name for spec in actor.spec.state] == [MEMORY]


def seen(noise: list[float], memory: float | None = None, first: bool = False) -> Seen:
    n = len(noise)
    state = {} if memory is None else {MEMORY: torch.full((n, 1), memory)}
    u = torch.tensor(noise).view(n, 1)
    return Seen({"obs": torch.zeros(n, 1)}, torch.full((n,), first), torch.zeros(n), state, u, torch.arange(n))


def test_acting_adds_noise_in_halves_of_the_range_and_none_when_greedy() -> None:
    actor, td3 = build("td3", WIDE, [math.atanh(0.5)], ZERO, ZERO, noise={"scale": 0.2})
    step = seen([0.8413447])
    actor.acting = td3.acting(0, 0.0)
    assert actor.acting == {"noise": 0.2, "uniform": 1.0}
    assert actor.act(step).action.item() == pytest.approx(2.0 + 2.0 * 0.6826894, abs=1e-5)
    actor.acting = {"noise": 0.2, "uniform": 0.0}
    assert actor.act(step).action.item() == pytest.approx(2.0 + 2.0 * 0.7, abs=1e-5)
    assert actor.act(step, greedy=True).action.item() == pytest.approx(3.0, abs=1e-5)
    td3.learn(transitions([0.0], [0.0], [0.0]), 0.0)
    assert td3.acting(0, 0.0)["uniform"] == 0.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"scale": 0.3}, ("ornstein_uhlenbeck", 0.3, 0.15, "constant")),
        ({"theta": 0.5}, ("ornstein_uhlenbeck", 0.2, 0.5, "constant")),
        ({"schedule": "linear"}, ("ornstein_uhlenbeck", 0.2, 0.15, "linear")),
        ({"kind": "gaussian"}, ("gaussian", 0.2, 0.15, "constant")),
    ],
)
def test_ddpgs_noise_drifts_whichever_of_its_keys_are_set(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    noise = read_settings(DDPGConfig, {"noise": given}, "algorithm").noise
    assert (noise.kind, noise.scale, noise.theta, noise.schedule) == expected


@pytest.mark.parametrize("model", [TD3Config, DDPGConfig])
def test_what_gaussian_noise_does_not_look_at_is_refused(model: type[TD3Config]) -> None:
    with pytest.raises(ConfigError, match=r"noise\.theta=0\.5 does nothing with algorithm\.noise\.kind=gaussian"):
        read_settings(model, {"noise": {"kind": "gaussian", "theta": 0.5}}, "algorithm")
    read_settings(model, {"noise": {"kind": "ornstein_uhlenbeck", "theta": 0.5}}, "algorithm")


def test_a_bound_on_noise_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"smoothing_clip=0\.3 does nothing with algorithm\.smoothing=0"):
        read_settings(DDPGConfig, {"smoothing_clip": 0.3}, "algorithm")
    read_settings(TD3Config, {"smoothing_clip": 0.3}, "algorithm")


def test_the_memory_of_noise_rides_on_whatever_is_done_with_the_action() -> None:
    actor, _ = build("ddpg", WIDE, [0.0], critics([[0.0]]), critics([[0.0]]))
    assert actor.spec.state == (ArraySpec(MEMORY, "<f4", (1,)),)
    for uniform in (0.0, 1.0):
        actor.acting = {"noise": 0.2, "uniform": uniform}
        acted = actor.act(seen([0.8413447], memory=0.4))
        assert acted.state[MEMORY].item() == pytest.approx(0.2 + 0.85 * 0.4, abs=1e-6)
    actor.acting = {"noise": 0.2, "uniform": 0.0}
    assert actor.act(seen([0.5], memory=0.4, first=True)).action.item() == pytest.approx(2.0, abs=1e-6)
    assert actor.act(seen([0.9], memory=0.4), greedy=True).state.keys() == {MEMORY}


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_a_resumed_learner_computes_the_same_updates_bit_for_bit(name: str) -> None:
    one = critics([[0.3], [0.1]] if name == "td3" else [[0.3]], slope=0.5)
    batches = [transitions([0.1 * i, 0.2], [1.0, -1.0], [0.9, 0.9]) for i in range(5)]
    actor, algorithm = build(name, BOX, [0.1], one, one)
    for batch in batches[:2]:
        algorithm.learn(batch, 0.1)
    saved, weights = algorithm.state_dict(), {key: x.clone() for key, x in actor.state_dict().items()}
    expected = [algorithm.learn(batch, 0.2) for batch in batches[2:]]
    other, resumed = build(name, BOX, [0.1], one, one)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    assert [resumed.learn(batch, 0.2) for batch in batches[2:]] == expected
    torch.testing.assert_close(dict(other.state_dict()), dict(actor.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("updates", [0, 1])
def test_an_update_that_is_not_finite_changes_nothing(updates: int) -> None:
    actor, td3 = build("td3", BOX, [0.1], critics([[0.3], [0.1]], slope=0.5), ZERO)
    for _ in range(updates):
        td3.learn(transitions([0.1], [1.0], [0.9]), 0.0)
    weights, state = {key: x.clone() for key, x in actor.state_dict().items()}, td3.state_dict()
    with pytest.raises(NonFiniteUpdate, match="nothing has changed"):
        td3.learn(transitions([0.1], [math.inf], [0.9]), 0.0)
    torch.testing.assert_close(dict(actor.state_dict()), weights, rtol=0, atol=0)
    torch.testing.assert_close(td3.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [TD3, DDPG])
def test_discrete_actions_are_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} takes Box actions"):
        kind.make_actor({}, {}, env(TWO), 0)


@pytest.mark.parametrize("kind", [DDPG, TD3])
def test_a_std_that_a_deterministic_policy_has_not_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match=rf"network\.log_std_init=-1\.0 says nothing to {kind.__name__}"):
        kind.make_actor({}, {"name": "mlp", "log_std_init": -1.0}, env(BOX), 1)


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_first_priorities_are_by_the_learners_own_critics(name: str) -> None:
    online = critics([[1.0], [3.0]], slope=2.0)
    actor, learner = build(name, WIDE, [math.atanh(0.5)], online, online, [0.0], critics=2, actor_priorities=True)
    assert [spec.name for spec in actor.spec.extras] == ["q_taken", "q_bootstrap"]
    noise, no = torch.tensor([[0.25]]), torch.zeros(1, dtype=torch.bool)
    state = {spec.name: torch.zeros(1, *spec.shape) for spec in actor.spec.state}
    step = Seen({"obs": torch.zeros(1, 1)}, no, torch.zeros(1), state, noise, torch.arange(1))
    # A uniform action of -0.5, of which the critics say 0 and 2; of the policy's own, 0.5, they say 2 and 4.
    extras = actor.act(step).extras
    assert (extras["q_taken"].item(), extras["q_bootstrap"].item()) == pytest.approx((1.0, 2.0), abs=1e-6)
    learner.learn(transitions([0.0], [9.0], [0.0]), 0.0)
    moved = torch.cat([p.flatten() for p in actor.critic.parameters()])
    assert torch.equal(moved, learner.state_dict()["critics"])
    assert not torch.equal(moved, online)
