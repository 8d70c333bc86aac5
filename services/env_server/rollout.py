"""The unroll under construction of one group: its buffers, its episodes and its counters.

Knows no simulator and no network: a backend writes into `targets()`, an inference-server answers `request()`, and the
finished arrays are laid out as `common/types.py` says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from common.errors import ProtocolError
from common.types import Arrays, EnvSpec, PolicySpec, prefixed
from services.env_server.backends import Finals


class Targets(NamedTuple):
    """Where a backend writes one step of its B environments, [B, ...] each, in the order of `Backend.step`."""

    observation: Arrays
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray


class _Buffers:
    """The arrays of one unroll, allocated anew each time: what was sent is never written again."""

    def __init__(self, spec: EnvSpec, policy: PolicySpec, unroll: int, num_envs: int) -> None:
        def empty(rows: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
            return np.empty((rows, num_envs, *shape), dtype)

        self.observation = {
            seen.name: empty(unroll + seen.stack, seen.shape if seen.stack == 1 else seen.shape[1:], seen.dtype)
            for seen in spec.observations
        }
        self.chosen = {"action": empty(unroll, spec.action.shape, spec.action.dtype)}
        self.chosen |= {f"extras.{extra.name}": empty(unroll, extra.shape, extra.dtype) for extra in policy.extras}
        self.first = np.zeros((unroll + 1, num_envs), np.bool_)
        self.reward = np.empty((unroll, num_envs), np.float32)
        self.terminated, self.truncated, self.valid = (empty(unroll, (), "bool") for _ in range(3))
        self.versions = np.empty(unroll, np.int64)
        self.final_index: list[np.ndarray] = []
        self.finals: list[Arrays] = []
        self.episode_returns: list[np.ndarray] = []
        self.episode_lengths: list[np.ndarray] = []

    def arrays(self) -> Arrays:
        """Gives the unroll under the names of `common/types.py`, less the state and reward before its first step."""
        arrays = {f"observation.{name}": value for name, value in self.observation.items()}
        arrays |= self.chosen
        for name in ("first", "reward", "terminated", "truncated", "valid", "versions"):
            arrays[name] = getattr(self, name)
        arrays["episode_returns"] = np.concatenate([*self.episode_returns, ()], dtype=np.float32, casting="same_kind")
        arrays["episode_lengths"] = np.concatenate([np.empty(0, np.int32), *self.episode_lengths])
        if self.final_index:
            arrays["final_index"] = np.concatenate(self.final_index)
            for name in self.observation:
                arrays[f"final.{name}"] = np.concatenate([final[name] for final in self.finals])
        return arrays


class Rollout:
    """One stream of experience: B environments, cut into unrolls of T steps.

    Per step: `request`, `act`, `targets` (for the backend), `advance`; after T of them `complete`, and `finish` hands
    the unroll over and starts the next. `steps`, `frames` and `number` are totals over finished unrolls.
    """

    def __init__(self, spec: EnvSpec, policy: PolicySpec, unroll: int, num_envs: int) -> None:
        self.spec = spec
        self.policy = policy
        self.unroll = unroll
        self.num_envs = num_envs
        self.steps = self.number = 0
        self._t = self._valid_steps = self._clock = 0
        self._return = np.zeros(num_envs, np.float64)
        self._started = np.zeros(num_envs, np.int64)
        self._reward_before = np.zeros(num_envs, np.float32)
        self._state: Arrays = {f"state.{a.name}": np.zeros((num_envs, *a.shape), a.dtype) for a in policy.state}
        self._state_before = self._state
        self._buffers = _Buffers(spec, policy, unroll, num_envs)
        # Whole stacks, of this step and of the next, in turn: a stack's request is answered before it is written again.
        stacks = [array for array in spec.observations if array.stack > 1]
        self._stacks = [{a.name: np.empty((num_envs, *a.shape), a.dtype) for a in stacks} for _ in range(2)]
        answers = {name: (value.shape[1:], value.dtype) for name, value in self._buffers.chosen.items()}
        self._answers = answers | {name: (value.shape, value.dtype) for name, value in self._state.items()}

    @property
    def frames(self) -> int:
        """Simulator ticks behind `steps`."""
        return self.steps * self.spec.frame_skip

    @property
    def complete(self) -> bool:
        """Whether the unroll has all its T steps."""
        return self._t == self.unroll

    def observation_row(self) -> Arrays:
        """Gives the views [B, ...] of the current step's observations, where a backend writes its first ones."""
        return self._rows(0)

    def begin(self) -> None:
        """Starts the stream: the row that `observation_row` gave holds first observations."""
        self._buffers.first[0] = True
        self._spread_stacks()

    def request(self) -> Arrays:
        """Gives the arrays of an Act for the current step, [B, ...] each; `reward` came with the observation."""
        t, buffers = self._t, self._buffers
        arrays = prefixed("observation", self._rows(0))
        arrays["reward"] = buffers.reward[t - 1] if t else self._reward_before
        arrays["first"] = buffers.first[t]
        arrays.update(self._state)
        return arrays

    def act(self, arrays: Arrays, version: int) -> np.ndarray:
        """Stores what an inference-server answered and gives the action [B, ...] for the backend.

        Raises ProtocolError where names, shapes or dtypes are not those of the policy's spec.
        """
        if {name: (array.shape, array.dtype) for name, array in arrays.items()} != self._answers:
            raise self._disagreement(arrays)
        t, chosen = self._t, self._buffers.chosen
        for name, rows in chosen.items():
            rows[t] = arrays[name]
        if self._state:
            self._state = {name: arrays[name] for name in self._state}
        self._buffers.versions[t] = version
        action: np.ndarray = chosen["action"][t]
        return action

    def targets(self) -> Targets:
        """Gives the views that the backend fills in this step: `backend.step(action, *rollout.targets())`."""
        t, buffers = self._t, self._buffers
        return Targets(self._rows(1), buffers.reward[t], buffers.terminated[t], buffers.truncated[t], buffers.valid[t])

    def advance(self, finals: Finals) -> None:
        """Takes in the step that the backend has written, and moves on to the next."""
        t, buffers, count = self._t, self._buffers, np.count_nonzero
        terminated, truncated, valid = buffers.terminated[t], buffers.truncated[t], buffers.valid[t]
        self._clock += 1
        for name, stack in self._stacks[self._clock % 2].items():
            buffers.observation[name][t + stack.shape[1]] = stack[:, -1]
        self._return += buffers.reward[t]
        if count(terminated) or count(truncated):
            ended = np.flatnonzero(terminated | truncated)
            buffers.episode_returns.append(self._return[ended])
            buffers.episode_lengths.append((self._clock - self._started[ended]).astype(np.int32))
            self._restart(ended)
        if len(finals.indices):
            # Only an environment that was reset at once is listed, so its next row opens an episode.
            buffers.first[t + 1, finals.indices] = True
            buffers.final_index.append((t * self.num_envs + finals.indices).astype(np.int32))
            buffers.finals.append(finals.observation)
        steps = int(count(valid))
        if steps != self.num_envs:
            opened = np.flatnonzero(~valid)
            buffers.first[t + 1, opened] = True
            self._restart(opened)
        self._valid_steps += steps
        self._t = t + 1

    def finish(self) -> Arrays:
        """Gives the complete unroll as `common/types.py` lays it out, and starts the next from its last row."""
        sent = self._buffers
        arrays = sent.arrays()
        arrays["reward_before"] = self._reward_before
        arrays.update(self._state_before)
        self.steps += self._valid_steps
        self.number += 1
        self._t = self._valid_steps = 0
        self._buffers = _Buffers(self.spec, self.policy, self.unroll, self.num_envs)
        self._buffers.first[0] = sent.first[-1]
        for name, rows in self._buffers.observation.items():
            rows[0] = sent.observation[name][-1]
        self._spread_stacks()
        self._reward_before = sent.reward[-1].copy()
        # What came from the network pins its whole message: this copy is kept for a whole unroll.
        self._state = self._state_before = {name: value.copy() for name, value in self._state.items()}
        return arrays

    def _rows(self, ahead: int) -> Arrays:
        """Gives the current step's observations [B, ...], or the next one's (1)."""
        rows = {name: value[self._t + ahead] for name, value in self._buffers.observation.items()}
        return rows | self._stacks[(self._clock + ahead) % 2]

    def _spread_stacks(self) -> None:
        for name, stack in self._stacks[self._clock % 2].items():
            self._buffers.observation[name][: stack.shape[1]] = stack.swapaxes(0, 1)

    def _restart(self, indices: np.ndarray) -> None:
        self._return[indices] = 0.0
        self._started[indices] = self._clock

    def _disagreement(self, arrays: Arrays) -> ProtocolError:
        came = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        theirs = {name: value for name, value in came.items() if self._answers.get(name) != value}
        ours = {name: value for name, value in self._answers.items() if came.get(name) != value}
        return ProtocolError(
            f"the inference-server answered {_show(theirs)} where the env-server of {self.spec.id!r} with "
            f"{self.num_envs} environments expects {_show(ours)}",
            "both sides must run the same job: check env.id, env.envs and the inference-server's address",
        )


def _show(arrays: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (shape, dtype) in arrays.items()) or "nothing"
