"""SAC's targets, losses and temperature by hand, over Box and over discrete actions."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import BOX, TWO, WIDE, build, critics, env, transitions

from common.errors import ConfigError
from common.rl.actor import Seen
from common.rl.algorithms.base import NonFiniteUpdate, OptimizerConfig
from common.rl.algorithms.sac import SAC
from common.rl.noise import uniforms
from common.types import ActionSpec, ArraySpec, EnvSpec

# The entropy of tanh of a standard normal: ½ log 2πe + E log(1 - tanh²).
ENTROPY = 0.6698041
COLD: dict[str, Any] = {"temperature": 1e-6, "learn_temperature": False}


def test_the_target_is_the_least_of_the_target_critics_and_the_entropy_is_added() -> None:
    n = 20000
    options: dict[str, Any] = {"temperature": 0.5, "learn_temperature": False}
    _, sac = build("sac", BOX, [0.0, 0.0], critics([[0.0], [-1.0]]), critics([[3.0], [2.0]]), **options)
    metrics = sac.learn(transitions([0.0] * n, [1.0] * n, [0.5] * n), 0.0)
    # y = 1 + 0.5 (2 + 0.5 H) on average, and the critics say 0 and -1.
    expected = 1.0 + 0.5 * (2.0 + 0.5 * ENTROPY)
    assert sac.priorities.mean().item() == pytest.approx(expected + 0.5, abs=0.01)
    assert metrics["entropy"] == pytest.approx(ENTROPY, abs=0.02)
    # -(t H) - min Q
    assert metrics["actor_loss"] == pytest.approx(-0.5 * ENTROPY + 1.0, abs=0.01)


def test_without_entropy_the_losses_are_plain_numbers() -> None:
    _, sac = build("sac", BOX, [0.0, 0.0], critics([[1.0], [0.0]]), critics([[3.0], [2.0]]), **COLD)
    metrics = sac.learn(transitions([0.3, -0.3], [1.0, 1.0], [0.5, 0.0]), 0.0)
    # y = 2 and 1 for critics that say 1 and 0: ½ (1 + 4) and ½ (0 + 1), and |y - q| on average.
    assert metrics["critic_loss"] == pytest.approx((2.5 + 0.5) / 2.0, abs=1e-4)
    assert sac.priorities.tolist() == pytest.approx([1.5, 0.5], abs=1e-4)
    assert metrics["q"] == pytest.approx(0.5, abs=1e-6)
    assert sac.priorities.dtype == torch.float32


def test_rare_draws_weigh_less_the_surer_the_job_is_over() -> None:
    for progress, weights in ((0.0, (1.0, 4.0**-0.4)), (1.0, (1.0, 0.25))):
        _, sac = build("sac", BOX, [0.0, 0.0], critics([[1.0], [1.0]]), critics([[3.0], [3.0]]), **COLD)
        metrics = sac.learn(transitions([0.0, 0.0], [3.0, 2.0], [0.0, 0.0], relative=[0.5, 2.0]), progress)
        # ½ · 2 critics · (2², 1²)
        assert metrics["critic_loss"] == pytest.approx((4.0 * weights[0] + 1.0 * weights[1]) / 2.0, abs=1e-4)


def test_actions_reach_the_critics_in_halves_of_their_range() -> None:
    _, sac = build("sac", WIDE, [0.0, 0.0], critics([[0.0], [0.0]], slope=1.0), critics([[0.0], [0.0]]), **COLD)
    # Actions in 0 to 4: 3 is 0.5, 0 is -1, and 9 is taken for 4.
    sac.learn(transitions([3.0, 0.0, 9.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]), 0.0)
    assert sac.priorities.tolist() == pytest.approx([0.5, 1.0, 1.0], abs=1e-5)


def test_the_actor_goes_where_the_critics_rise() -> None:
    for slope, sign in ((2.0, 1.0), (-2.0, -1.0)):
        actor, sac = build("sac", BOX, [0.0, -3.0], critics([[0.0], [0.0]], slope), critics([[0.0], [0.0]]), **COLD)
        sac.learn(transitions([0.0] * 8, [0.0] * 8, [0.0] * 8), 0.0)
        mean = list(actor.parameters())[-1].flatten()[0].item()
        assert mean == pytest.approx(sign * 0.01, abs=1e-5)


@pytest.mark.parametrize(("log_std", "target", "sign"), [(0.0, None, -1.0), (-4.0, None, 1.0), (-1.0, 0.5, 1.0)])
def test_the_temperature_falls_where_there_is_entropy_to_spare(
    log_std: float, target: float | None, sign: float
) -> None:
    # Entropies of 0.67, -2.6 and about 0.3 nats; a Box of one component aims at -1.
    online = critics([[0.0], [0.0]])
    _, sac = build("sac", BOX, [0.0, log_std], online, online, temperature=0.2, target_entropy=target)
    batch = transitions([0.0] * 64, [0.0] * 64, [0.0] * 64)
    assert sac.learn(batch, 0.0)["temperature"] == pytest.approx(0.2)
    # Adam's first step is the learning rate, whatever the gradient.
    assert sac.learn(batch, 0.0)["temperature"] == pytest.approx(0.2 * math.exp(sign * 0.01), rel=1e-4)


def test_targets_follow_by_tau_and_critics_descend() -> None:
    online, target = critics([[1.0], [1.0]]), critics([[3.0], [2.0]])
    _, sac = build("sac", BOX, [0.0, 0.0], online, target, tau=0.25, **COLD)
    sac.learn(transitions([0.0], [5.0], [0.0]), 0.0)
    state = sac.state_dict()
    torch.testing.assert_close(state["target"], target + 0.25 * (state["critics"] - target))
    # The last two are the critics' constants, both below y.
    assert state["critics"][-2:].tolist() == pytest.approx([1.01, 1.01], abs=1e-5)


def test_over_discrete_actions_the_expectation_is_exact() -> None:
    options: dict[str, Any] = {"temperature": 0.1, "learn_temperature": False}
    online = critics([[1.0, 2.0], [0.0, 4.0]], slope=None)
    target = critics([[1.0, 3.0], [2.0, 0.0]], slope=None)
    logits = [0.0, math.log(3.0)]  # a quarter and three quarters
    _, sac = build("sac", TWO, logits, online, target, **options)
    metrics = sac.learn(transitions([0, 1], [1.0, 1.0], [0.5, 0.0]), 0.0)
    entropy = 0.25 * math.log(4.0) + 0.75 * math.log(4.0 / 3.0)
    assert entropy == pytest.approx(0.562335)
    assert metrics["entropy"] == pytest.approx(0.562335)
    # Least values 1 and 0: y = 1 + 0.5 (0.25 + 0.1 H) = 1.153117, and 1.
    assert sac.priorities.tolist() == pytest.approx([(0.153117 + 1.153117) / 2.0, (1.0 + 3.0) / 2.0], abs=1e-5)
    squares = 0.153117**2 + 1.153117**2, 1.0 + 9.0
    assert metrics["critic_loss"] == pytest.approx(0.5 * sum(squares) / 2.0, abs=1e-5)
    # Least values of the online critics are 0 and 2.
    assert metrics["actor_loss"] == pytest.approx(-0.1 * 0.562335 - 1.5, abs=1e-5)


def test_discrete_actions_aim_at_half_the_largest_entropy() -> None:
    online = critics([[0.0, 0.0], [0.0, 0.0]], slope=None)
    # Entropies of 0.474 and 0.017 nats, against 0.347.
    for gap, sign in ((1.5, -1.0), (6.0, 1.0)):
        _, sac = build("sac", TWO, [0.0, gap], online, online)
        batch = transitions([0], [0.0], [0.0])
        sac.learn(batch, 0.0)
        assert sac.learn(batch, 0.0)["temperature"] == pytest.approx(math.exp(sign * 0.01), rel=1e-4)


def seen(noise: list[list[float]]) -> Seen:
    n = len(noise)
    return Seen(
        {"obs": torch.zeros(n, 1)},
        torch.zeros(n, dtype=torch.bool),
        torch.zeros(n),
        {},
        torch.tensor(noise),
        torch.arange(n),
    )


def test_acting_is_uniform_until_the_first_update_then_a_sample_and_greedily_the_mean() -> None:
    online = critics([[0.0], [0.0]])
    actor, sac = build("sac", WIDE, [0.5, math.log(0.1)], online, online)
    step = seen([[0.25], [0.8413447]])
    before_any_weights: dict[str, float] = {}
    for acting in (before_any_weights, sac.acting(0, 0.0)):
        actor.acting = acting
        assert actor.act(step).action.flatten().tolist() == pytest.approx([1.0, 3.3653788], abs=1e-5)
    assert actor.act(step, greedy=True).action[0].item() == pytest.approx(2.0 + 2.0 * math.tanh(0.5), abs=1e-5)
    actor.acting = {"uniform": 0.0}
    assert actor.act(step).action[1].item() == pytest.approx(2.0 + 2.0 * math.tanh(0.6), abs=1e-5)


def test_the_first_update_ends_the_uniform_actions() -> None:
    online = critics([[0.0], [0.0]])
    _, sac = build("sac", BOX, [0.0, 0.0], online, online)
    assert sac.acting(100, 0.5) == {"uniform": 1.0}
    sac.learn(transitions([0.0], [0.0], [0.0]), 0.0)
    assert sac.acting(100, 0.5) == {"uniform": 0.0}


def test_discrete_actions_at_random_are_all_alike() -> None:
    online = critics([[0.0, 0.0], [0.0, 0.0]], slope=None)
    actor, _ = build("sac", TWO, [9.0, 0.0], online, online)
    action = actor.act(seen([[0.1], [0.49], [0.51], [0.9999999]])).action
    assert action.tolist() == [0, 0, 1, 1]
    assert action.dtype == torch.int64
    assert actor.act(seen([[0.9]]), greedy=True).action.item() == 0


KINDS: dict[str, tuple[dict[str, Any], EnvSpec]] = {
    "vector": ({"normalize_observations": True}, EnvSpec("x", (ArraySpec("obs", "<f8", (4,)),), BOX)),
    "choice": ({}, EnvSpec("x", (ArraySpec("obs", "<f4", (4,)),), TWO)),
    "pixels": ({"name": "minatar_cnn"}, EnvSpec("x", (ArraySpec("obs", "|b1", (10, 10, 2)),), TWO)),
    "box of pixels": (
        {"name": "minatar_cnn"},
        EnvSpec("x", (ArraySpec("obs", "|u1", (10, 10, 2)), ArraySpec("n", "<f4", ())), WIDE),
    ),
}


def random_transitions(spec: EnvSpec, seed: int, n: int = 16) -> Any:
    draw = np.random.default_rng(seed)

    def observe(entry: ArraySpec) -> torch.Tensor:
        shape = (n, *entry.shape)
        if entry.dtype.endswith("1"):
            return torch.from_numpy(draw.integers(0, 2 if entry.dtype == "|b1" else 200, shape).astype(entry.dtype))
        return torch.from_numpy(draw.normal(size=shape).astype(entry.dtype))

    action = draw.integers(0, 2, n).tolist() if spec.action.kind == "discrete" else draw.uniform(0.0, 1.0, n).tolist()
    batch = transitions(action, draw.normal(size=n).tolist(), [0.99] * n)
    before, after = ({entry.name: observe(entry) for entry in spec.observations} for _ in range(2))
    return replace(batch, observation=before, next_observation=after)


def make(kind: str, **options: Any) -> tuple[Any, SAC]:
    network, spec = KINDS[kind]
    actor = SAC.make_actor(options, {"hidden": [16], **network}, spec, 0)
    return actor, SAC(options, OptimizerConfig(), actor, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_space_learns_with_every_parameter(kind: str) -> None:
    actor, sac = make(kind)
    before = {name: x.clone() for name, x in actor.named_parameters()}
    critics_before = sac.state_dict()["critics"]
    metrics = sac.learn(random_transitions(KINDS[kind][1], 0), 0.0)
    assert all(map(math.isfinite, metrics.values()))
    assert [name for name, x in actor.named_parameters() if torch.equal(x, before[name])] == []
    changed = (sac.state_dict()["critics"] != critics_before).float().mean()
    assert changed > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_learner_computes_the_same_updates_bit_for_bit(kind: str) -> None:
    batches = [random_transitions(KINDS[kind][1], seed) for seed in range(4)]
    actor, sac = make(kind)
    for batch in batches[:2]:
        sac.learn(batch, 0.1)
    saved, weights = sac.state_dict(), {name: x.clone() for name, x in actor.state_dict().items()}
    expected = [sac.learn(batch, 0.2) for batch in batches[2:]]
    other, resumed = make(kind)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    assert [resumed.learn(batch, 0.2) for batch in batches[2:]] == expected
    torch.testing.assert_close(dict(other.state_dict()), dict(actor.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["vector", "choice"])
@pytest.mark.parametrize("where", ["reward", "observation", "next_observation"])
def test_an_update_that_is_not_finite_changes_nothing(kind: str, where: str) -> None:
    spec = KINDS[kind][1]
    actor, sac = make(kind)
    sac.learn(random_transitions(spec, 0), 0.0)
    weights, state = {name: x.clone() for name, x in actor.state_dict().items()}, sac.state_dict()
    bad = random_transitions(spec, 1)
    (bad.reward if where == "reward" else getattr(bad, where)["obs"])[3] = math.nan
    with pytest.raises(NonFiniteUpdate, match="not finite"):
        sac.learn(bad, 0.0)
    torch.testing.assert_close(dict(actor.state_dict()), weights, rtol=0, atol=0)
    torch.testing.assert_close(sac.state_dict(), state, rtol=0, atol=0)


def test_observations_join_the_statistics_once_they_were_trained_on() -> None:
    actor, sac = make("vector")
    batch = random_transitions(KINDS["vector"][1], 0)
    looked = actor.inputs(batch.observation)[0].clone()
    torch.testing.assert_close(looked, batch.observation["obs"].float())
    sac.learn(batch, 0.0)
    assert actor.inputs(batch.observation)[0].mean(0).abs().max() < 1e-3 < looked.mean(0).abs().max()


def test_an_action_does_not_depend_on_who_shares_its_batch() -> None:
    actor, _ = make("vector")
    actor.acting = {"uniform": 0.0}
    noise, obs = torch.from_numpy(uniforms(0, (0, 8), 3, 1)), torch.randn(8, 4, dtype=torch.float64)
    step = Seen({"obs": obs}, torch.zeros(8, dtype=torch.bool), torch.zeros(8), {}, noise, torch.arange(8))
    alone = [actor.act(replace(step, observation={"obs": obs[i : i + 1]}, noise=noise[i : i + 1])) for i in range(8)]
    torch.testing.assert_close(actor.act(step).action, torch.cat([one.action for one in alone]))


@pytest.mark.parametrize(
    ("action", "options", "words"),
    [
        (TWO, {"quantiles": 25}, "algorithm.quantiles=25 wants Box actions"),
        (BOX, {"quantiles": 5, "drop": 5}, "algorithm.drop=5 leaves none of 5"),
        (BOX, {"drop": 3}, "algorithm.drop=3 does nothing with algorithm.quantiles=0"),
        (
            BOX,
            {"learn_temperature": False, "target_entropy": -3.0},
            "algorithm.target_entropy=-3.0 does nothing with algorithm.learn_temperature=false",
        ),
        # log 2 both: of two choices, and of a box two wide.
        (TWO, {"target_entropy": 0.7}, "algorithm.target_entropy=0.7 is more than any policy has, .* 0.6931 nats"),
        (BOX, {"target_entropy": 0.7}, "algorithm.target_entropy=0.7 is more than any policy has, .* 0.6931 nats"),
        (ActionSpec("multi_binary", "<i8", (2,), (2, 2)), {}, "takes Box actions"),
        (BOX, {"tua": 0.1}, "did you mean tau"),
    ],
)
def test_what_cannot_be_is_refused(action: ActionSpec, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SAC.make_actor(options, {}, env(action), 0)


def test_over_choices_a_first_std_is_refused() -> None:
    assert SAC.make_actor({}, {"log_std_init": -2.0}, env(BOX), 0).noise_size == 1
    with pytest.raises(ConfigError, match=r"network\.log_std_init=-2\.0 says nothing to SAC over choices"):
        SAC.make_actor({}, {"log_std_init": -2.0}, env(TWO), 0)


def test_first_priorities_are_by_the_learners_own_critics() -> None:
    online = critics([[1.0], [3.0]], slope=2.0)
    actor, sac = build("sac", WIDE, [math.atanh(0.5), -3.0], online, online, actor_priorities=True)
    assert [spec.name for spec in actor.spec.extras] == ["q_taken", "q_bootstrap"]
    # A uniform action of -0.5, of which the critics say 0 and 2; of the mode, 0.5, they say 2 and 4.
    extras = actor.act(seen([[0.25]])).extras
    assert (extras["q_taken"].item(), extras["q_bootstrap"].item()) == pytest.approx((1.0, 2.0), abs=1e-6)
    sac.learn(transitions([0.0], [9.0], [0.0]), 0.0)
    moved = torch.cat([p.flatten() for p in actor.critic.parameters()])
    assert torch.equal(moved, sac.state_dict()["critics"])
    assert not torch.equal(moved, online)


def test_first_priorities_of_choices_are_by_what_the_policy_expects() -> None:
    online = critics([[1.0, 2.0], [3.0, 0.0]], slope=None)
    actor, _ = build("sac", TWO, [0.0, math.log(3.0)], online, online, actor_priorities=True)
    # The first choice is taken, at 1 and 3; the least of both are 1 and 0, at chances of 1 to 3.
    extras = actor.act(seen([[0.25]])).extras
    assert (extras["q_taken"].item(), extras["q_bootstrap"].item()) == pytest.approx((2.0, 0.25), abs=1e-6)


def test_first_priorities_of_quantiles_are_by_their_mean() -> None:
    online = critics([[1.0, 3.0], [5.0, 7.0]], slope=2.0)
    options: dict[str, Any] = {"quantiles": 2, "drop": 1, "actor_priorities": True}
    actor, _ = build("sac", BOX, [0.0, -3.0], online, online, **options)
    extras = actor.act(seen([[0.25]])).extras
    assert (extras["q_taken"].item(), extras["q_bootstrap"].item()) == pytest.approx((4.0 - 1.0, 2.0), abs=1e-6)
