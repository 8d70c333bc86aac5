"""R2D2: what a sequence teaches, against a float64 loop; what burn-in, padding and an episode's start do."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ConfigError, ProtocolError
from common.rl.actor import pack_weights
from common.rl.algorithms.base import NonFiniteUpdate, OptimizerConfig
from common.rl.algorithms.r2d2 import R2D2
from common.rl.batch import Batch, to_batch
from common.rl.ops.q_learning import rescale, unrescale
from common.rl.q_networks import QNetwork
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec

CPU = torch.device("cpu")
SPEC = EnvSpec("a", (ArraySpec("obs", "<f4", (3,)),), ActionSpec("discrete", "<i8", (), (3,)))
LENGTH, COLUMNS = 12, 8
SHORT = {"burn_in": 3, "n_step": 2, "discount": 0.9}
LSTM = {"lstm": 6, "hidden": [8]}


def make(network: dict[str, Any] | None = None, **algorithm: Any) -> tuple[QNetwork, R2D2]:
    settings = {**SHORT, **algorithm}
    actor = R2D2.make_actor(settings, network or LSTM, SPEC, 0)
    return actor, R2D2(settings, OptimizerConfig(lr=1e-2), actor, 0)


def draw(network: QNetwork, seed: int = 0) -> Arrays:
    """Sequences as a ring gives them: some begin with their episode, some end before the last step."""
    g = np.random.default_rng(seed)
    shape = (LENGTH, COLUMNS)
    # Two whole ones, one that stops without an end, then some that end by termination or truncation; one ends early.
    steps = np.array([12, 12, 10, 9, 7, 5, 2, 12])
    valid = np.arange(LENGTH)[:, None] < steps
    ends = np.arange(LENGTH)[:, None] == steps - 1
    terminated = ends & np.array([0, 0, 0, 1, 0, 1, 1, 0], bool)
    truncated = ends & np.array([0, 0, 0, 0, 1, 0, 0, 1], bool)
    first = np.zeros((LENGTH + 1, COLUMNS), bool)
    first[0, [1, 4, 6]] = True
    state = {f"state.{s.name}": g.random((COLUMNS, *s.shape)).astype(s.dtype) for s in network.spec.state}
    for array in state.values():
        array[first[0]] = 0
    return {
        "observation.obs": g.normal(size=(LENGTH + 1, COLUMNS, 3)).astype(np.float32),
        "first": first,
        "action": g.integers(0, 3, shape),
        "reward": (3.0 * g.normal(size=shape) * valid).astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "valid": valid,
        "relative": g.uniform(0.5, 4.0, COLUMNS).astype(np.float32),
        "reward_before": np.zeros(COLUMNS, np.float32),
        **state,
    }


def values(network: QNetwork, arrays: Arrays) -> np.ndarray:
    """Gives Q [L + 1, B, A] by steps, from the state that lies at a sequence's start."""
    state = tuple(torch.from_numpy(arrays[f"state.{name}"]) for name in ("h", "c"))
    rows = []
    with torch.no_grad():
        for look in torch.from_numpy(arrays["observation.obs"]):
            assert network.core is not None
            state = network.core.step(network.trunk(network.inputs({"obs": look})), None, state)
            rows.append(network.values(state[0], None)[..., 0].double().numpy())
    return np.stack(rows)


def h(x: float) -> float:
    return rescale(torch.tensor(x, dtype=torch.float64), 1e-3).item()


def h_inverse(x: float) -> float:
    return unrescale(torch.tensor(x, dtype=torch.float64), 1e-3).item()


def errors_of(arrays: Arrays, online: np.ndarray, target: np.ndarray, b: int) -> list[float]:
    """The errors of one column, step by step, as the definition has them."""
    found = []
    start = 0 if arrays["first"][0, b] else 3
    for t in range(start, start + LENGTH - 3 - 2):
        if not arrays["valid"][t, b]:
            continue
        total, worth = 0.0, 1.0
        for k in range(t, t + 2):
            total += worth * arrays["reward"][k, b]
            worth *= 0.9
            if arrays["terminated"][k, b] or arrays["truncated"][k, b] or not arrays["valid"][k + 1, b]:
                break
        after = h_inverse(target[k + 1, b, online[k + 1, b].argmax()])
        total += worth * after * (not arrays["terminated"][k, b])
        found.append(h(total) - online[t, b, arrays["action"][t, b]])
    return found


def test_loss_and_priorities_are_those_of_the_definition() -> None:
    actor, r2d2 = make(importance=0.6)
    other, _ = make()
    state = r2d2.state_dict()
    state["target"] += torch.randn(state["target"].shape, generator=torch.Generator().manual_seed(1))
    r2d2.load_state_dict(state)
    torch.nn.utils.vector_to_parameters(state["target"], other.parameters())
    arrays = draw(actor)
    online, target = values(actor, arrays), values(other, arrays)
    errors = [errors_of(arrays, online, target, b) for b in range(COLUMNS)]
    assert [len(e) for e in errors] == [7, 7, 7, 6, 7, 2, 2, 7]
    weights = arrays["relative"].astype(np.float64) ** -0.6
    losses = [
        w * (0.5 * e * e if abs(e) < 1 else abs(e) - 0.5) for w, own in zip(weights, errors, strict=True) for e in own
    ]
    metrics = r2d2.learn(to_batch(arrays, CPU), 0.0)
    assert metrics["loss"] == pytest.approx(np.mean(losses) / weights.max(), rel=1e-4)
    assert r2d2.priorities is not None
    expected = [0.9 * np.max(np.abs(e)) + 0.1 * np.mean(np.abs(e)) for e in errors]
    np.testing.assert_allclose(r2d2.priorities.numpy(), expected, rtol=1e-4)


def learned(network: QNetwork | None = None, **changed: np.ndarray) -> dict[str, float]:
    actor, r2d2 = make()
    return r2d2.learn(to_batch({**draw(actor), **changed}, CPU), 0.0)


def test_burn_in_teaches_nothing_but_a_sequence_that_begins_its_episode_is_learned_from_its_start() -> None:
    actor, _ = make()
    arrays = draw(actor)
    reward = arrays["reward"].copy()
    reward[:3, ~arrays["first"][0]] += 5.0
    assert learned(reward=reward) == learned()
    reward[0, 1] += 5.0
    assert learned(reward=reward)["loss"] != learned()["loss"]


def test_burn_in_brings_the_stored_state_up_to_date() -> None:
    actor, _ = make()
    looks = draw(actor)["observation.obs"].copy()
    looks[0, 0] += 1.0
    assert learned(**{"observation.obs": looks})["loss"] != learned()["loss"]


def test_no_gradient_flows_through_the_burn_in() -> None:
    actor, r2d2 = make()
    arrays = draw(actor)
    arrays["first"][0] = False
    # After the burn-in the first number seen is nothing: no step that is learned from moves what it is weighed by.
    arrays["observation.obs"][3:, :, 0] = 0.0
    weight = actor.get_parameter("trunk.encoders.0.layers.0.weight")
    before = weight.detach().clone()
    r2d2.learn(to_batch(arrays, CPU), 0.0)
    assert torch.equal(weight[:, 0], before[:, 0])
    assert not torch.equal(weight[:, 1], before[:, 1])


def test_padding_teaches_nothing() -> None:
    actor, _ = make()
    arrays = draw(actor)
    looks, reward, action = (arrays[name].copy() for name in ("observation.obs", "reward", "action"))
    # Column 5 has five steps, and the true last observation in row 5.
    looks[6:, 5], reward[5:, 5], action[5:, 5] = 7.0, 7.0, 0
    metrics = learned(**{"observation.obs": looks, "reward": reward, "action": action})
    assert metrics == pytest.approx(learned(), rel=1e-6)


def test_a_truncated_episode_is_worth_its_true_last_observation_and_a_terminated_one_nothing() -> None:
    actor, _ = make()
    for column, row, counts in ((4, 7, True), (3, 9, False)):
        looks = draw(actor)["observation.obs"].copy()
        looks[row, column] += 1.0
        changed = learned(**{"observation.obs": looks})["loss"] != pytest.approx(learned()["loss"], rel=1e-6)
        assert changed is counts


def test_a_sequence_without_a_step_to_learn_from_has_no_priority_and_spoils_nothing() -> None:
    actor, r2d2 = make()
    arrays = draw(actor)
    arrays["first"][0] = False
    r2d2.learn(to_batch(arrays, CPU), 0.0)
    assert r2d2.priorities is not None
    assert r2d2.priorities[6].item() == 0.0
    assert (r2d2.priorities[:6] > 0).all()


def test_a_batch_of_whole_sequences_needs_no_mask() -> None:
    actor, _ = make()
    arrays = draw(actor)
    whole = {"valid": np.ones_like(arrays["valid"]), "terminated": np.zeros_like(arrays["terminated"])}
    whole["truncated"] = whole["terminated"]
    results = []
    for mask in (None, torch.ones(LENGTH, COLUMNS, dtype=torch.bool)):
        _, r2d2 = make()
        batch: Batch = replace(to_batch({**arrays, **whole}, CPU), valid=mask)
        results.append((r2d2.learn(batch, 0.0), r2d2.priorities))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("network", [LSTM, {"gru": 6, "last_action": True, "last_reward": True}])
def test_all_parameters_learn_and_a_resumed_learner_goes_on_bit_for_bit(network: dict[str, Any]) -> None:
    network = {**network, "normalize_observations": True}
    actor, r2d2 = make(network, target_every=2)
    before = {name: x.detach().clone() for name, x in actor.named_parameters()}
    batches = [to_batch(draw(actor, seed), CPU) for seed in range(6)]
    for given in batches[:3]:
        r2d2.learn(given, 0.1)
    assert [name for name, x in actor.named_parameters() if torch.equal(x, before[name])] == []
    other, resumed = make(network, target_every=2)
    other.load_state_dict({key: x.clone() for key, x in actor.state_dict().items()})
    resumed.load_state_dict(r2d2.state_dict())
    for given in batches[3:]:
        assert r2d2.learn(given, 0.2) == resumed.learn(given, 0.2)
        np.testing.assert_array_equal(pack_weights(actor), pack_weights(other))


@pytest.mark.parametrize("array", ["reward", "observation.obs", "state.h"])
def test_an_update_that_is_not_finite_changes_nothing(array: str) -> None:
    actor, r2d2 = make({**LSTM, "normalize_observations": True}, target_every=1)
    arrays = draw(actor)
    r2d2.learn(to_batch(arrays, CPU), 0.0)
    weights, state = pack_weights(actor), r2d2.state_dict()
    bad = {name: x.copy() for name, x in arrays.items()}
    bad[array].reshape(-1, *bad[array].shape[-1:])[-1] = np.nan
    bad[array][0] = np.nan
    bad[array][4:6] = np.nan
    with pytest.raises(NonFiniteUpdate):
        r2d2.learn(to_batch(bad, CPU), 0.0)
    np.testing.assert_array_equal(pack_weights(actor), weights)
    torch.testing.assert_close(r2d2.state_dict(), state, rtol=0, atol=0)


def test_only_steps_that_were_taken_are_folded_into_the_statistics() -> None:
    actor, r2d2 = make({**LSTM, "normalize_observations": True})
    arrays = draw(actor)
    r2d2.learn(to_batch(arrays, CPU), 0.0)
    assert actor.inputs.normalizer is not None
    assert actor.inputs.normalizer.moments.count.item() == arrays["valid"].sum() == 69


def test_sequences_too_short_to_learn_from_are_refused() -> None:
    actor, r2d2 = make(burn_in=9, n_step=3)
    with pytest.raises(ConfigError, match=r"burn_in=9 and n_step=3 leave nothing of sequences of 12 steps"):
        r2d2.learn(to_batch(draw(actor), CPU), 0.0)


def test_a_last_observation_that_is_not_in_its_row_is_refused() -> None:
    actor, r2d2 = make()
    arrays = {**draw(actor), "final_index": np.array([3], np.int32), "final.obs": np.zeros((1, 3), np.float32)}
    with pytest.raises(ProtocolError, match="last observation beside it"):
        r2d2.learn(to_batch(arrays, CPU), 0.0)


def test_a_network_without_a_core_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"network\.lstm=0"):
        R2D2.make_actor({}, {}, SPEC, 0)
