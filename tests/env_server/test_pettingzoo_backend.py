"""The PettingZoo backend gives each agent a column that lives through what the agent does when stepped by hand."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from mpe2 import simple_spread_v3
from pettingzoo import ParallelEnv

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import ActionSpec, ArraySpec, PolicySpec
from services.env_server.backends import Backend, make_backend
from services.env_server.backends.pettingzoo import ParallelBackend
from services.env_server.rollout import Rollout

HERE = __name__
SPREAD = "mpe2.simple_spread_v3:parallel_env"


class Race(ParallelEnv[str, np.ndarray, int]):
    """Each agent runs from its `start` to its `end`, in ticks; agent c's last step is a truncation.

    An observation is [episode, agent, tick], a reward 10 * agent + action. The agent `mute` leaves without a flag;
    `lingering` ones stay listed when they ended.
    """

    metadata = {"name": "race"}  # noqa: RUF012

    def __init__(
        self,
        start: tuple[int, ...] = (0, 0, 0),
        end: tuple[int, ...] = (1, 4, 3),
        mute: str = "",
        lingering: bool = False,
    ) -> None:
        self.possible_agents = list("abcdef"[: len(end)])
        self.start = dict(zip(self.possible_agents, start, strict=True))
        self.end = dict(zip(self.possible_agents, end, strict=True))
        self.mute = mute
        self.lingering = lingering
        self.episode = 0
        self.seeds: list[int | None] = []

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return spaces.Box(0, 99, (3,), np.int16)

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        self.seeds.append(seed)
        self.episode += 1
        self.t = 0
        self.agents = [agent for agent in self.possible_agents if self.start[agent] == 0]
        return self.look(self.agents), {}

    def look(self, agents: list[str]) -> dict[str, np.ndarray]:
        return {a: np.array([self.episode, self.possible_agents.index(a), self.t], np.int16) for a in agents}

    def step(self, actions: dict[str, int]) -> tuple[Any, Any, Any, Any, Any]:
        assert list(actions) == [agent for agent in self.agents if self.end[agent] > self.t]
        self.t += 1
        over = {agent: self.end[agent] == self.t for agent in actions}
        born = [agent for agent in self.possible_agents if self.start[agent] == self.t]
        if not self.lingering:
            self.agents = [agent for agent in actions if not over[agent]] + born
        reward = {agent: 10.0 * self.possible_agents.index(agent) + action for agent, action in actions.items()}
        stopped = {agent: over[agent] and agent not in ("c", self.mute) for agent in actions}
        cut = {agent: over[agent] and agent == "c" and agent != self.mute for agent in actions}
        return self.look([*actions, *born]), reward, stopped, cut, {}


class Unequal(Race):
    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return spaces.Box(0, 99, (4 if agent == "c" else 3,), np.int16)


class Handed(Race):
    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return spaces.Discrete(2 if agent == "b" else 3)


class Crooked(Race):
    def look(self, agents: list[str]) -> dict[str, np.ndarray]:
        return {agent: np.zeros(1, np.int16) for agent in agents}


class Impostor:
    possible_agents = ("a", "b")


def backend_of(env_id: str, num_envs: int, **kwargs: Any) -> ParallelBackend:
    backend = make_backend(EnvConfig(id=env_id, kwargs=kwargs), num_envs)
    assert isinstance(backend, ParallelBackend)
    return backend


def run(backend: Backend, actions: np.ndarray) -> dict[str, np.ndarray]:
    """One unroll of the backend under the given actions [T, B]."""
    rollout = Rollout(backend.spec, PolicySpec(), len(actions), backend.num_envs)
    backend.reset(3, rollout.observation_row())
    rollout.begin()
    for action in actions:
        rollout.advance(backend.step(rollout.act({"action": action}, 0), *rollout.targets()))
    backend.close()
    return rollout.finish()


def column(arrays: dict[str, np.ndarray], name: str, b: int) -> list[Any]:
    values: list[Any] = arrays[name][:, b].tolist()
    return values


def test_an_agent_that_ended_waits_until_the_environment_is_reset() -> None:
    arrays = run(backend_of(f"{HERE}:Race", 3), np.full((9, 3), 2))
    seen = arrays["observation.obs"]
    # Agent a ends at tick 1, c at 3, b at 4: then all start again.
    assert column(arrays, "valid", 0) == [True, False, False, False, True, False, False, False, True]
    assert column(arrays, "valid", 1) == [True] * 9
    assert column(arrays, "valid", 2) == [True, True, True, False, True, True, True, False, True]
    assert column(arrays, "terminated", 0) == [True, False, False, False, True, False, False, False, True]
    assert np.flatnonzero(arrays["terminated"][:, 1]).tolist() == [3, 7]
    assert np.flatnonzero(arrays["truncated"]).tolist() == [3 * 2 + 2, 3 * 6 + 2]
    assert seen[:, 0].tolist() == [[1, 0, 0], *[[1, 0, 1]] * 3, [2, 0, 0], *[[2, 0, 1]] * 3, [3, 0, 0], [3, 0, 1]]
    assert [tick for _, _, tick in column(arrays, "observation.obs", 1)] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [tick for _, _, tick in column(arrays, "observation.obs", 2)] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    # A reset is in the step of the last to end: its true last observation is kept, and the others' are in their rows.
    assert arrays["final_index"].tolist() == [3 * 3 + 1, 3 * 7 + 1]
    assert arrays["final.obs"].tolist() == [[1, 1, 4], [2, 1, 4]]
    assert column(arrays, "reward", 0) == [2, 0, 0, 0, 2, 0, 0, 0, 2]
    assert column(arrays, "reward", 2) == [22, 22, 22, 0, 22, 22, 22, 0, 22]


def test_the_unroll_counts_decisions_and_each_agents_own_episodes() -> None:
    arrays = run(backend_of(f"{HERE}:Race", 3), np.full((9, 3), 2))
    assert arrays["valid"].sum() == 9 + 7 + 3
    assert arrays["episode_returns"].tolist() == [2, 66, 48, 2, 66, 48, 2]
    assert arrays["episode_lengths"].tolist() == [1, 3, 4, 1, 3, 4, 1]
    # Every row after a wait opens an episode, and so does each row that begins one.
    assert np.flatnonzero(arrays["first"][:, 0]).tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert np.flatnonzero(arrays["first"][:, 1]).tolist() == [0, 4, 8]
    assert np.flatnonzero(arrays["first"][:, 2]).tolist() == [0, 4, 8]


def test_an_agent_that_comes_later_decides_nothing_before() -> None:
    arrays = run(backend_of(f"{HERE}:Race", 2, start=(0, 2), end=(5, 4)), np.ones((6, 2), np.int64))
    assert column(arrays, "valid", 1) == [False, False, True, True, False, False]
    assert arrays["observation.obs"][:, 1].tolist() == [[0, 0, 0]] * 2 + [[1, 1, 2], [1, 1, 3]] + [[1, 1, 4]] * 3
    assert column(arrays, "reward", 1) == [0, 0, 11, 11, 0, 0]
    assert column(arrays, "first", 1) == [True, True, True, False, False, True, True]
    assert (arrays["episode_returns"].tolist(), arrays["episode_lengths"].tolist()) == ([22, 5], [2, 5])
    assert arrays["final_index"].tolist() == [8]


def test_an_agent_that_leaves_without_a_word_was_cut() -> None:
    arrays = run(backend_of(f"{HERE}:Race", 2, start=(0, 0), end=(2, 3), mute="b"), np.zeros((3, 2), np.int64))
    assert np.flatnonzero(arrays["truncated"]).tolist() == [5]
    assert arrays["final_index"].tolist() == [5]
    assert column(arrays, "first", 1) == [True, False, False, True]


def test_an_agent_that_ended_stays_away_though_it_is_still_listed() -> None:
    actions = np.full((9, 3), 2)
    tidy, lingering = (run(backend_of(f"{HERE}:Race", 3, lingering=lingers), actions) for lingers in (False, True))
    for name in ("observation.obs", "valid", "terminated", "truncated", "final_index"):
        np.testing.assert_array_equal(lingering[name], tidy[name], err_msg=name)


def test_agents_of_several_environments_lie_side_by_side_and_reset_apart() -> None:
    backend = backend_of(f"{HERE}:Race", 6)
    backend._worlds[1].end = {"a": 1, "b": 1, "c": 2}  # type: ignore[attr-defined]
    arrays = run(backend, np.tile([0, 1, 2], (4, 2)))
    assert arrays["reward"].tolist() == [
        [0, 11, 22, 0, 11, 22],
        [0, 11, 22, 0, 0, 22],
        [0, 11, 22, 0, 11, 22],
        [0, 11, 0, 0, 0, 22],
    ]
    assert arrays["final_index"].tolist() == [11, 19, 23]
    assert arrays["final.obs"].tolist() == [[1, 2, 2], [1, 1, 4], [2, 2, 2]]
    seeds = [world.seeds for world in backend._worlds]  # type: ignore[attr-defined]
    assert [len(each) for each in seeds] == [2, 3]
    assert seeds[0][0] != seeds[1][0]
    assert [each[1:] for each in seeds] == [[None], [None, None]]


def test_simple_spread_equals_stepping_it_by_hand() -> None:
    backend = backend_of(SPREAD, 6, N=3, max_cycles=7)
    assert backend.spec.observations == (ArraySpec("obs", "<f4", (18,)),)
    assert backend.spec.action == ActionSpec("discrete", "<i8", (), n=(5,))
    actions = np.random.default_rng(0).integers(0, 5, (50, 6))
    arrays = run(backend, actions)
    finals = dict(zip(arrays["final_index"].tolist(), arrays["final.obs"], strict=True))
    seeds = np.random.SeedSequence(3).generate_state(2) & 0x7FFFFFFF
    for w in range(2):
        env = simple_spread_v3.parallel_env(N=3, max_cycles=7)
        seen, _ = env.reset(seed=int(seeds[w]))
        for t in range(50):
            columns = {agent: 3 * w + a for a, agent in enumerate(env.agents)}
            after, reward, _, cut, _ = env.step({agent: actions[t, b] for agent, b in columns.items()})
            again = env.reset()[0] if any(cut.values()) else after
            for agent, b in columns.items():
                np.testing.assert_array_equal(arrays["observation.obs"][t, b], seen[agent])
                np.testing.assert_array_equal(arrays["observation.obs"][t + 1, b], again[agent])
                assert arrays["reward"][t, b] == np.float32(reward[agent])
                assert arrays["truncated"][t, b] == arrays["first"][t + 1, b] == cut[agent] == (t % 7 == 6)
                if cut[agent]:
                    np.testing.assert_array_equal(finals[6 * t + b], after[agent])
            seen = again
        env.close()
    assert len(finals) == 6 * 7
    assert arrays["valid"].all()
    assert not arrays["terminated"].any()


def test_continuous_actions_reach_the_agents_clipped() -> None:
    high, beyond = (
        run(backend_of(SPREAD, 3, continuous_actions=True), np.full((4, 3, 5), push, np.float32)) for push in (1, 9)
    )
    np.testing.assert_array_equal(high["observation.obs"], beyond["observation.obs"])
    assert beyond["action"].max() == 9


def test_the_first_environment_is_drawn_when_asked_to() -> None:
    backend = make_backend(EnvConfig(id=SPREAD), 3, render_mode="rgb_array")
    backend.reset(1, {"obs": np.empty((3, 18), np.float32)})
    picture = backend.render()
    backend.close()
    assert picture is not None
    assert picture.shape == (700, 700, 3)


@pytest.mark.parametrize(
    ("env_id", "num_envs", "said"),
    [
        ("Race", 7, r"env.envs=7 is no multiple of the 3 agents of env.id=.* \(it counts agents: set it to 6 or 9\)"),
        ("Race", 1, r"env.envs=1 is no multiple of the 3 agents .*set it to 3\)"),
        ("Unequal", 3, r"observation space of agent 'a' is Box.*agent 'c' Box.*\(.*pad_observations_v0"),
        (
            "Handed",
            3,
            r"action space of agent 'a' is Discrete\(3\), .* 'b' Discrete\(2\) \(.*pad_actions_v0",
        ),
        ("Impostor", 2, r"made Impostor, not a pettingzoo.ParallelEnv \(return one, or a gymnasium.Env"),
    ],
)
def test_agents_that_cannot_share_a_group_are_named(env_id: str, num_envs: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_backend(EnvConfig(id=f"{HERE}:{env_id}"), num_envs)


def test_agents_that_act_in_turn_are_answered_with_the_conversion() -> None:
    with pytest.raises(ConfigError, match=r"made \w+, not a .*ParallelEnv \(.*aec_to_parallel.*parallel_env\)"):
        make_backend(EnvConfig(id="mpe2.simple_spread_v3:env"), 3)


def test_an_observation_of_another_shape_than_its_space_is_refused() -> None:
    backend = backend_of(f"{HERE}:Crooked", 3)
    with pytest.raises(ConfigError, match=r"gave observation 'obs' of shape \(1,\), its space says \(3,\)"):
        backend.reset(1, {"obs": np.empty((3, 3), np.int16)})


def test_a_missing_library_is_answered_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpe2", None)
    monkeypatch.delitem(sys.modules, "mpe2.simple_spread_v3", raising=False)
    with pytest.raises(ConfigError, match=r"in the clone: pip install -e '\.\[multiagent\]'"):
        make_backend(EnvConfig(id=SPREAD), 3)
