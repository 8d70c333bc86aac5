"""Streams of random experience that remember what truly happened, for tests of what is cut out of them.

Every observation is a number that no other has, so that what is drawn can be looked up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from common.types import Arrays
from services.replay_server.unroll import Unroll


@dataclass(slots=True)
class Step:
    """One step as it truly was; `seen` and `after` are stacks, oldest frame first."""

    seen: tuple[int, ...]
    action: int
    reward: float
    first: bool
    at: int
    terminated: bool = False
    truncated: bool = False
    valid: bool = True
    after: tuple[int, ...] = ()
    # What followed in the same column of the same stream, across unrolls.
    line: list[Step] = field(default_factory=list, repr=False)
    place: int = 0

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    @property
    def whole_stack(self) -> bool:
        """Whether all frames of its stack were seen in the line it belongs to."""
        return set(self.seen) <= {0} | {step.seen[-1] for step in self.line}

    def future(self) -> list[Step]:
        """The steps from this one to its episode's end, or as far as they are known."""
        steps: list[Step] = []
        for step in self.line[self.place :]:
            steps.append(step)
            if step.ended:
                break
        return steps


class World:
    """Streams of `stack`ed observations, cut into unrolls of `steps`; `columns` lists what was inserted, in order."""

    def __init__(self, steps: int, stack: int, seed: int) -> None:
        self._steps, self._stack = steps, stack
        self._random = np.random.default_rng(seed)
        self._count = 0
        self._columns: dict[str, list[tuple[tuple[int, ...], bool, bool, list[Step]]]] = {}
        self._life: dict[str, tuple[int, int]] = {}
        self.columns: list[list[Step]] = []

    def new(self) -> int:
        self._count += 1
        return self._count

    def opening(self) -> tuple[int, ...]:
        """The first stack of an episode."""
        return (*[0] * (self._stack - 1), self.new())

    def begin(self, slot: str, envs: int) -> None:
        """A new life of a stream."""
        self._life[slot] = (self._life.get(slot, (0, 0))[0] + 1, 0)
        self._columns[slot] = [(self.opening(), True, False, []) for _ in range(envs)]

    def skip(self, slot: str) -> None:
        """Loses an unroll: what follows goes on elsewhere in the same life."""
        self.unroll(slot)
        del self.columns[-len(self._columns[slot]) :]
        for _, _, _, line in self._columns[slot]:
            del line[-self._steps :]
        self._columns[slot] = [(seen, first, over, []) for seen, first, over, _ in self._columns[slot]]

    def unroll(self, slot: str) -> Unroll:
        """The next unroll of a stream."""
        T, B, k = self._steps, len(self._columns[slot]), self._stack
        life, number = self._life[slot]
        self._life[slot] = (life, number + 1)
        arrays: Arrays = {
            "observation.obs": np.zeros((T + k, B, 1)),
            "first": np.zeros((T + 1, B), np.bool_),
            "action": np.zeros((T, B), np.int64),
            "reward": np.zeros((T, B), np.float32),
            "terminated": np.zeros((T, B), np.bool_),
            "truncated": np.zeros((T, B), np.bool_),
            "valid": np.ones((T, B), np.bool_),
            "extras.logp": np.zeros((T, B), np.float32),
            "state.core": np.zeros((B, 1), np.float32),
            "reward_before": np.zeros(B, np.float32),
            "versions": np.full(T, number, np.int64),
        }
        finals: list[tuple[int, tuple[int, ...]]] = []
        for b in range(B):
            self._columns[slot][b] = self._column(arrays, b, finals, *self._columns[slot][b])
        if finals:
            arrays["final_index"] = np.array([index for index, _ in finals], np.int32)
            stacks = np.array([seen for _, seen in finals], np.float64)[..., None]
            arrays["final.obs"] = stacks if k > 1 else stacks[:, 0]
        return Unroll(slot, life, number + 1, 0, arrays)

    def _column(
        self,
        arrays: Arrays,
        b: int,
        finals: list[tuple[int, tuple[int, ...]]],
        seen: tuple[int, ...],
        first: bool,
        over: bool,
        line: list[Step],
    ) -> tuple[tuple[int, ...], bool, bool, list[Step]]:
        B, k = arrays["reward"].shape[1], self._stack
        arrays["observation.obs"][:k, b, 0] = seen
        arrays["state.core"][b] = seen[-1]
        column: list[Step] = []
        for t in range(self._steps):
            step = Step(seen, 7 * seen[-1], float(self._random.integers(-3, 4)), first, t, line=line, place=len(line))
            arrays["first"][t, b] = first
            event = "open" if over else self._random.choice(["on"] * 6 + ["reset", "cut", "end", "stop"])
            after = (*seen[1:], self.new())
            seen, first, over = after, False, False
            if event == "open":
                # The simulator could only reset: no decision.
                step.valid, step.reward = False, 0.0
                seen, first = (*[0] * (k - 1), after[-1]), True
            elif event in ("reset", "cut"):
                step.terminated, step.truncated = event == "reset", event == "cut"
                finals.append((t * B + b, after))
                seen, first = self.opening(), True
            elif event in ("end", "stop"):
                step.terminated, step.truncated, over = event == "end", event == "stop", True
            step.after = after
            line.append(step)
            column.append(step)
            arrays["observation.obs"][t + k, b, 0] = seen[-1]
            for name in ("action", "reward", "terminated", "truncated", "valid"):
                arrays[name][t, b] = getattr(step, name)
            arrays["extras.logp"][t, b] = -step.seen[-1]
        arrays["first"][-1, b] = first
        self.columns.append(column)
        return seen, first, over, line
