"""Multi-agent environments through PettingZoo's parallel API: each agent is a column of the group.

Owns how agents become columns: environment e's agent a, counted in `possible_agents`, is column e * agents + a, so
`env.envs` counts agents. One policy plays them all, so they share their spaces. Knows no network and no unroll.

An environment is reset in the step in which its last agent ends, and each agent then starts an episode. One that ended
before the others, or is not there yet, makes no decision: until the reset, or until it appears, its steps are not valid
and repeat what its column saw last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from pettingzoo import AECEnv, ParallelEnv

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import Arrays
from services.env_server.backends import NO_FINALS, Finals
from services.env_server.backends.gymnasium import check_shape, describe
from services.env_server.backends.spaces import action_putter, action_rows

World: TypeAlias = ParallelEnv[Any, Any, Any]


def make_backend(config: EnvConfig, num_envs: int, first: object, make: Callable[[], Any]) -> ParallelBackend:
    """Gives `num_envs` agents, in as many environments as that takes: `first`, and more of what `make` gives.

    Raises ConfigError naming env.id or env.envs and the remedy.
    """
    if not isinstance(first, ParallelEnv):
        in_turn = "return pettingzoo.utils.aec_to_parallel(env), or name the module's parallel_env"
        raise ConfigError(
            f"env.id={config.id!r} made {type(first).__name__}, not a pettingzoo.ParallelEnv",
            in_turn if isinstance(first, AECEnv) else "return one, or a gymnasium.Env, from the factory",
        )
    _check_spaces(config.id, first)
    agents = len(first.possible_agents)
    worlds, over = divmod(num_envs, agents)
    if over:
        nearest = f"{worlds * agents} or {(worlds + 1) * agents}" if worlds else str(agents)
        raise ConfigError(
            f"env.envs={num_envs} is no multiple of the {agents} agents of env.id={config.id!r}",
            f"it counts agents: set it to {nearest}",
        )
    return ParallelBackend(config, [first, *(make() for _ in range(worlds - 1))])


class ParallelBackend:
    """Parallel environments stepped one after another, each agent in a column of its own."""

    holds_gil = True

    def __init__(self, config: EnvConfig, worlds: list[World]) -> None:
        self._worlds = worlds
        self._agents = tuple(worlds[0].possible_agents)
        space = worlds[0].action_space(self._agents[0])
        self.spec, self._leaves = describe(config, worlds[0].observation_space(self._agents[0]), space)
        self.num_envs = n = len(worlds) * len(self._agents)
        self._put_action = action_putter(space)
        self._action_space = space
        # Columns whose agent acts in the next step, columns whose agent ended, and what each column saw last.
        self._acting = np.zeros(n, np.bool_)
        self._ended = np.zeros(n, np.bool_)
        self._seen = {array.name: np.zeros((n, *array.shape), array.dtype) for array in self.spec.observations}

    def reset(self, seed: int, observation: Arrays) -> None:
        seeds = np.random.SeedSequence(seed).generate_state(len(self._worlds)) & 0x7FFFFFFF
        for w, own in enumerate(seeds.tolist()):
            self._open(w, own)
        self._write(observation)

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        chosen = list(action_rows(self._action_space, self._put_action(action)))
        valid[:] = self._acting
        reward.fill(0.0)
        terminated.fill(False)
        truncated.fill(False)
        for w, world in enumerate(self._worlds):
            columns = {agent: b for agent, b in self._columns(w) if valid[b]}
            seen, gained, stopped, cut, _ = world.step({agent: chosen[b] for agent, b in columns.items()})
            self._look(w, seen)
            for agent, b in columns.items():
                reward[b] = gained[agent]
                terminated[b] = stopped[agent]
                # An agent that leaves without a word was cut.
                truncated[b] = cut[agent] or (agent not in world.agents and not stopped[agent])
        self._ended |= terminated | truncated
        for w in range(len(self._worlds)):
            self._muster(w)
        finals = self._reopen(terminated | truncated)
        self._write(observation)
        return finals

    @property
    def tallies(self) -> Mapping[str, int]:
        return {}

    def render(self) -> np.ndarray | None:
        picture = self._worlds[0].render()
        return picture if isinstance(picture, np.ndarray) else None

    def close(self) -> None:
        for world in self._worlds:
            world.close()

    def _reopen(self, ended: np.ndarray) -> Finals:
        """Resets the environments in which nobody is left; of the columns that `ended` just now, theirs are listed."""
        agents = len(self._agents)
        empty = ~self._acting.reshape(-1, agents).any(axis=1)
        if not empty.any():
            return NO_FINALS
        listed = np.flatnonzero(ended & np.repeat(empty, agents))
        finals = Finals(listed.astype(np.int32), {name: rows[listed] for name, rows in self._seen.items()})
        for w in np.flatnonzero(empty):
            self._open(int(w), None)
        return finals

    def _open(self, w: int, seed: int | None) -> None:
        seen, _ = self._worlds[w].reset(seed=seed)
        self._look(w, seen)
        for _, b in self._columns(w):
            self._ended[b] = False
        self._muster(w)

    def _muster(self, w: int) -> None:
        """Notes whose turn the next step is; an agent that ended stays away until the reset."""
        there = set(self._worlds[w].agents)
        for agent, b in self._columns(w):
            self._acting[b] = agent in there and not self._ended[b]

    def _look(self, w: int, seen: Mapping[Any, Any]) -> None:
        for agent, b in self._columns(w):
            if agent in seen:
                for leaf in self._leaves:
                    # Assignment would broadcast a wrong shape in silence.
                    check_shape(self.spec.id, leaf, leaf.read(seen[agent]))
                    self._seen[leaf.spec.name][b] = leaf.read(seen[agent])

    def _write(self, observation: Arrays) -> None:
        for name, rows in self._seen.items():
            observation[name][:] = rows

    def _columns(self, w: int) -> list[tuple[Any, int]]:
        base = w * len(self._agents)
        return [(agent, base + a) for a, agent in enumerate(self._agents)]


def _check_spaces(env_id: str, world: World) -> None:
    one, *others = world.possible_agents
    for other in others:
        for kind in ("observation", "action"):
            ours, theirs = (getattr(world, f"{kind}_space")(agent) for agent in (one, other))
            if ours != theirs:
                raise ConfigError(
                    f"env.id={env_id!r}: the {kind} space of agent {one!r} is {ours}, that of agent {other!r} {theirs}",
                    "one policy plays all agents: pad them to one space in a factory (supersuit's "
                    f"pad_{kind}s_v0 does) and name that",
                )
