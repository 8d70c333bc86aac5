from dataclasses import replace
from typing import Any

import pytest
import torch

from common.errors import ConfigError
from common.rl.actor import Seen, pack_weights
from common.rl.exploration import EpsilonConfig
from common.rl.ops.q_learning import rescale, unrescale
from common.rl.q_networks import QNetwork, QSettings, build_q_network
from common.rl.value_heads import Histogram, Mean
from common.types import ActionSpec, ArraySpec, EnvSpec

THREE = EnvSpec("a", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i4", (), (3,)))
GREEDY = {"uniform": 0.0, "epsilon": 0.0}


def build(network: dict[str, Any] | None = None, seed: int = 0, **settings: Any) -> QNetwork:
    chosen = {"head": Mean(1.0), "epsilon": EpsilonConfig(), **settings}
    network = build_q_network(network or {}, THREE, seed, QSettings(**chosen))
    network.acting = GREEDY
    return network


def look(network: QNetwork, rows: int = 5, seed: int = 0, first: bool = False) -> Seen:
    g = torch.Generator().manual_seed(seed)
    state = {s.name: torch.ones(rows, *s.shape) for s in network.spec.state}
    if "last_action" in state:
        state["last_action"] = state["last_action"].int()
    noise = torch.rand(rows, network.noise_size, generator=g)
    observation = {"obs": torch.randn(rows, 4, generator=g)}
    return Seen(observation, torch.full((rows,), first), torch.zeros(rows), state, noise, torch.arange(rows))


def test_dueling_adds_the_value_to_advantages_less_their_mean() -> None:
    network = build({"hidden": [4]}, dueling=True)
    features = torch.randn(2, 4)
    assert network.value is not None
    advantage, value = network.advantage(features, None), network.value(features, None)
    expected = value + advantage - advantage.mean(1, keepdim=True)
    torch.testing.assert_close(network.values(features, None).squeeze(-1), expected)


def test_dueling_of_histograms_is_bar_by_bar() -> None:
    network = build({"hidden": [4]}, dueling=True, head=Histogram(5, -1.0, 1.0))
    values = network.values(torch.randn(2, 4), None)
    assert values.shape == (2, 3, 5)
    assert network.value is not None
    features = torch.randn(2, 4)
    torch.testing.assert_close(network.values(features, None).mean(1), network.value(features, None))


def test_the_best_action_is_taken_where_nothing_is_explored() -> None:
    network = build()
    seen = look(network)
    values = network.evaluate(seen.observation).squeeze(-1)
    assert network.act(seen).action.tolist() == values.argmax(-1).tolist()
    assert network.act(seen).action.dtype == torch.int32


def test_the_noise_alone_decides_on_random_actions() -> None:
    network = build()
    network.acting = {"uniform": 1.0}
    seen = look(network)
    assert network.act(seen).action.tolist() == (seen.noise[:, 1] * 3).int().tolist()
    assert network.act(seen, greedy=True).action.tolist() == network.evaluate(seen.observation).argmax(1)[:, 0].tolist()


def test_each_environment_explores_by_its_number() -> None:
    network = build(epsilon=EpsilonConfig(actors=5, base=0.999, alpha=1e9))
    seen = look(network)
    best = network.evaluate(seen.observation).argmax(1)[:, 0].tolist()
    at_random = (seen.noise[:, 1] * 3).int().tolist()
    # The first explores nearly always, the others never.
    assert network.act(seen).action.tolist() == [at_random[0], *best[1:]]


def test_values_for_first_priorities_are_shipped_only_when_asked_for() -> None:
    assert build().spec.extras == ()
    network = build(ships_values=True)
    network.acting = {"uniform": 1.0}
    seen = look(network)
    acted, values = network.act(seen), network.evaluate(seen.observation).squeeze(-1)
    assert [s.name for s in network.spec.extras] == ["q_taken", "q_bootstrap"]
    torch.testing.assert_close(acted.extras["q_bootstrap"], values.max(1).values)
    torch.testing.assert_close(acted.extras["q_taken"], values.gather(1, acted.action.long().unsqueeze(1))[:, 0])


def test_the_error_of_the_step_before_is_shipped_for_sequences() -> None:
    network = build({"lstm": 4}, sequence_errors=(0.5, 1e-3))
    assert [s.name for s in network.spec.extras] == ["error_before"]
    assert [s.name for s in network.spec.state] == ["h", "c", "q_taken"]
    for first in (False, True):
        seen = replace(look(network, first=first), reward=torch.full((5,), 3.0))
        acted = network.act(seen)
        # Of a step that took an action worth 1; nothing comes after an episode's end.
        core = tuple(seen.state[name] for name in ("h", "c"))
        features = network.unroll({"obs": seen.observation["obs"][None]}, seen.first[None], core)[0][0]
        values = network.values(features, None).squeeze(-1)
        after = 0.0 if first else unrescale(values.max(-1).values, 1e-3)
        expected = (rescale(torch.full((5,), 3.0) + 0.5 * after, 1e-3) - 1.0).abs()
        torch.testing.assert_close(acted.extras["error_before"], expected)
        torch.testing.assert_close(acted.state["q_taken"], values.gather(1, acted.action.long().unsqueeze(1))[:, 0])


def test_noisy_streams_explore_by_the_noise_of_their_own_row_and_not_in_evaluation() -> None:
    network = build({"hidden": [4]}, dueling=True, hidden=8, sigma=3.0, ships_values=True)
    # Two streams of 4 -> 8 -> 3 and 4 -> 8 -> 1, and two columns for epsilon.
    assert network.noise_size == 2 + (4 + 8 + 8 + 3) + (4 + 8 + 8 + 1)
    seen = look(network)
    values = network.act(seen).extras["q_bootstrap"]
    assert not torch.allclose(values, network.evaluate(seen.observation).amax(1)[:, 0], atol=1e-3)
    torch.testing.assert_close(
        network.act(seen, greedy=True).extras["q_bootstrap"], network.evaluate(seen.observation).amax(1)[:, 0]
    )
    part = Seen({"obs": seen.observation["obs"][2:3]}, seen.first[2:3], seen.reward[2:3], {}, seen.noise[2:3], seen.env)
    torch.testing.assert_close(network.act(part).extras["q_bootstrap"], values[2:3])


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_a_core_remembers_until_an_episode_begins(core: str) -> None:
    network = build({core: 6, "last_action": True, "last_reward": True}, ships_values=True)
    names = ["h", "c"] if core == "lstm" else ["h"]
    assert [s.name for s in network.spec.state] == [*names, "last_action"]
    seen, other = look(network), look(network)
    other.state["h"].mul_(-1.0)
    assert not torch.equal(network.act(seen).state["h"], network.act(other).state["h"])
    begun, again = look(network, first=True), look(network, first=True)
    again.state["h"].mul_(-1.0)
    assert torch.equal(network.act(begun).state["h"], network.act(again).state["h"])
    assert torch.equal(network.act(begun).state["last_action"], network.act(begun).action)


def test_the_seed_alone_decides_on_the_first_weights() -> None:
    torch.manual_seed(1)
    one = build(sigma=0.5)
    torch.manual_seed(2)
    same, other = build(sigma=0.5), build(sigma=0.5, seed=1)
    assert (pack_weights(one) == pack_weights(same)).all()
    assert (pack_weights(one) != pack_weights(other)).any()


def test_settings_that_only_a_policy_understands_are_named() -> None:
    with pytest.raises(ConfigError, match=r"network\.popart=True says nothing to a Q-network"):
        build({"popart": True})


def test_an_action_that_is_no_single_choice_is_refused() -> None:
    box = EnvSpec("Pendulum-v1", THREE.observations, ActionSpec("box", "<f4", (1,), low=(-2.0,), high=(2.0,)))
    with pytest.raises(ConfigError, match="'Pendulum-v1' has box actions"):
        build_q_network({}, box, 0, QSettings(Mean(1.0), EpsilonConfig()))
