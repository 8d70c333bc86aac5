"""What a ring hands out: transitions, sequences or whole unrolls, cut from the storage when they are drawn.

`complete` says which items the unroll `number`, just stored at `ids` [B], completes: their positions, and priorities
where the behaviour policy gave an estimate of them (nan: not of this one). `memory` is what it keeps of a stream
between unrolls: arrays, none where a stream begins. `gather` gives drawn items as fresh arrays, named as in a Batch.
`tables` are kept by position, for a checkpoint. Positions, ids and rows are as in `storage.py`.
"""

from __future__ import annotations

import numpy as np

from common.config import TableConfig
from common.types import Arrays, prefixed
from services.replay_server.ring.storage import Storage

_LARGEST = 0.9  # what the largest error weighs in a sequence's priority (Kapturowski et al., 2019)

Complete = tuple[np.ndarray, np.ndarray | None]


def n_step(reward: np.ndarray, ended: np.ndarray, n: int, discount: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives for each step of [W, B] the discounted sum of n rewards, float32, fewer where the episode `ended`; how many
    these are; and whether it ended with them (Sutton, 1988)."""
    steps = len(reward)
    total, closed, count = reward.astype(np.float32), ended.copy(), np.ones(reward.shape, np.int64)
    for i in range(1, min(n, steps)):
        goes_on = ~closed[: steps - i]
        # Not a product: what is not finite in the next episode would come through.
        total[: steps - i] += np.float32(discount**i) * np.where(goes_on, reward[i:], np.float32(0))
        count[: steps - i] += goes_on
        closed[: steps - i] |= ended[i:]
    return total, count, closed


class Transitions:
    """n steps from each valid one on, fewer at an episode's end.

    With extras q_taken and q_bootstrap, an item's priority is the actor's |R + discount * q_bootstrap - q_taken|
    (Horgan et al., 2018), for which it waits for the step after its last; a truncated one has none.
    """

    def __init__(self, storage: Storage, config: TableConfig) -> None:
        self._storage, self._n, self._discount = storage, config.n_step, config.discount or 1.0
        self._clip = config.reward_clip or np.inf
        self._estimates = {"extras.q_taken", "extras.q_bootstrap"} <= storage.steps.keys()
        self._reward, self._factor = np.empty((2, storage.capacity), np.float32)
        self.following = np.empty(storage.capacity, np.int32)
        self.tables: Arrays = {"reward": self._reward, "factor": self._factor, "following": self.following}

    def complete(self, ids: np.ndarray, number: int, memory: Arrays) -> Complete:
        storage, steps, n, columns = self._storage, self._storage.steps, self._n, len(ids)
        ids = ids + np.arange(storage.unroll)[:, None]
        done = np.zeros(ids.shape, np.bool_)
        if memory:
            # Steps that are done come too: what follows the newest of them has left the side store.
            ids, done = np.concatenate([memory["ids"], ids]), np.concatenate([memory["done"], done])
        position = ids % storage.capacity
        reward, ended = steps["reward"].take(position).clip(-self._clip, self._clip), steps["ended"].take(position)
        total, count, closed = n_step(reward, ended, n, self._discount)
        reached = np.arange(len(ids))[:, None] + n + self._estimates <= len(ids)
        whole = (closed | reached) & storage.has(ids)
        # By their places in what is flattened: an index for each axis costs several times as much.
        place = np.flatnonzero(whole)
        here, taken = position.take(place), count.take(place)
        end = place + (taken - 1) * columns
        final = position.take(end)
        self._reward[here] = total.take(place)
        self._factor[here] = (self._discount ** np.arange(n + 1)).take(taken) * ~steps["terminated"].take(final)
        self.following[here] = storage.following(final)
        memory["ids"], memory["done"] = ids[-n:].copy(), (done | whole)[-n:]
        new = ~done.take(place)
        here, end = here[new], end[new]
        if not self._estimates:
            return here, None
        # An item whose last step is the newest one here has ended.
        bootstrap = steps["extras.q_bootstrap"].take(position.take(np.minimum(end + columns, position.size - 1)))
        # Past an episode's end the actor saw the next one: it never valued a truncated one's last observation.
        beyond = np.where(self._factor[here] == 0, 0.0, np.nan)
        value = np.where(ended.take(end), beyond, self._factor[here] * bootstrap.astype(np.float64))
        return here, np.abs(self._reward[here] + value - steps["extras.q_taken"][here])

    def gather(self, positions: np.ndarray, random: np.random.Generator) -> Arrays:
        """observation.<name> and next_observation.<name> (after the last of the n steps), action and extras.<name> of
        the first; reward, the discounted sum of clipped ones; discount, discount^k (1 - terminated). All [n, ...]."""
        storage, n = self._storage, len(positions)
        drawn = {"reward": self._reward.take(positions), "discount": self._factor.take(positions)}
        rows = np.concatenate([positions, self.following.take(positions)])
        for name in storage.frames:
            both = storage.observe(name, rows)
            drawn[f"observation.{name}"], drawn[f"next_observation.{name}"] = both[:n], both[n:]
        for name, store in storage.steps.items():
            if name == "action" or name.startswith("extras."):
                drawn[name] = store.take(positions, axis=0)
        return drawn


class Sequences:
    """`sequence` steps from every `period`-th step of a stream on, and from each episode's first (Kapturowski, 2019).

    None goes on past its episode's end: it is padded there, and masked. One that ends within its first `burn_in` steps
    is none, but for an episode's first, of which these are learned from too.

    With the extra error_before, an actor's estimate of the error of the step before each, an item's priority is 0.9 of
    the largest and 0.1 of the mean of those that are known, less `burn_in` steps. Not known are that of a truncated
    step, of an unroll's last one, and of a terminated one where a reset takes a step of its own.
    """

    def __init__(self, storage: Storage, config: TableConfig) -> None:
        self._storage, self._length, self._every = storage, config.sequence, config.period // storage.unroll
        self._burn_in = config.burn_in
        self._steps = np.empty(storage.capacity, np.int32)
        self.tables: Arrays = {"steps": self._steps}

    def complete(self, ids: np.ndarray, number: int, memory: Arrays) -> Complete:
        storage, unroll = self._storage, self._storage.unroll
        position = ids % storage.capacity + np.arange(unroll)[:, None]
        starts = storage.steps["first"].take(position)
        starts[0] |= number % self._every == 0
        t, column = np.nonzero(starts & storage.steps["valid"].take(position))
        # An open sequence goes on at t = 0; `before` counts its steps until then.
        opened = {"start": ids[column] + t, "column": column, "before": -t}
        if memory:
            alive = storage.has(memory["start"])
            opened = {name: np.append(memory[name][alive], array) for name, array in opened.items()}
        end = _next_end(storage.steps["ended"].take(position))
        end = end[np.maximum(-opened["before"], 0), opened["column"]]
        held = opened["before"] + np.minimum(end + 1, unroll)
        whole = (end < unroll) | (held >= self._length)
        memory.update({name: array[~whole] for name, array in (opened | {"before": held}).items()})
        complete = opened["start"][whole] % storage.capacity
        self._steps[complete] = np.minimum(held[whole], self._length)
        complete = complete[(held[whole] > self._burn_in) | storage.steps["first"].take(complete)]
        return complete, self._priorities(complete) if "extras.error_before" in storage.steps else None

    def _priorities(self, positions: np.ndarray) -> np.ndarray:
        storage, steps = self._storage, self._steps.take(positions)
        times, first = np.arange(self._length)[:, None], storage.steps["first"]
        last = storage.ahead(positions, steps - 1)
        # Whether the row after an episode's last step is the next one's first is known within an unroll alone.
        inside = last % storage.unroll < storage.unroll - 1
        following = last + inside
        over = storage.steps["terminated"].take(last) & first.take(following)
        ends = times == steps - 1
        known = (times < steps - 1) | (ends & inside & (over | ~storage.steps["ended"].take(last)))
        fresh = first.take(positions)
        known &= np.where(fresh, times < self._length - self._burn_in, times >= self._burn_in)
        after = np.where(ends, following, storage.ahead(positions, np.minimum(times + 1, steps - 1)))
        error = np.where(known, storage.steps["extras.error_before"].take(after), 0.0)
        count = known.sum(axis=0)
        mixed = _LARGEST * error.max(axis=0) + (1.0 - _LARGEST) * error.sum(axis=0) / np.maximum(count, 1)
        return np.where(count > 0, mixed, np.nan)

    def gather(self, positions: np.ndarray, random: np.random.Generator) -> Arrays:
        """Time-major: observation.<name> [L+1, n, ...] (single frames [L+k, n, ...] where stacked), the true last one
        after the last step; first [L+1, n]; action, reward, terminated, truncated, extras.<name> and mask [L, n, ...];
        state.<name> [n, ...] before the first step. Padding repeats the last step, without reward or end."""
        storage, steps, times = self._storage, self._steps.take(positions), np.arange(self._length)[:, None]
        position, mask = storage.ahead(positions, np.minimum(times, steps - 1)), times < steps
        after = storage.following(position[-1:])
        rows = np.concatenate([np.where(mask, position, after), after])
        drawn = {f"observation.{name}": storage.film(name, rows) for name in storage.frames}
        for name in storage.steps.keys() - {"first", "ended", "valid"}:
            drawn[name] = storage.steps[name].take(position, axis=0)
        for name in ("reward", "terminated", "truncated"):
            drawn[name] *= mask
        drawn |= {"mask": mask, "first": np.zeros((self._length + 1, len(positions)), np.bool_)}
        drawn["first"][0] = storage.steps["first"].take(positions)
        slot, t = np.divmod(positions, storage.unroll)
        for name in storage.chunks.keys() - {"first_after"}:
            drawn[name] = storage.chunks[name].take(slot, axis=0)
            # An episode begins in the middle of a chunk: from the initial state.
            drawn[name][t > 0] = 0
        return drawn


class Unrolls:
    """Columns of unrolls as they were inserted, if they have a valid step."""

    def __init__(self, storage: Storage, config: TableConfig) -> None:
        self._storage = storage
        self.tables: Arrays = {}

    def complete(self, ids: np.ndarray, number: int, memory: Arrays) -> Complete:
        start = ids % self._storage.capacity
        valid = self._storage.steps["valid"].take(start + np.arange(self._storage.unroll)[:, None])
        return start[valid.any(axis=0)], None

    def gather(self, positions: np.ndarray, random: np.random.Generator) -> Arrays:
        """The names and shapes of an unroll (common/types.py) with a column per item, less its episodes; versions are
        [T, n]."""
        storage, slot = self._storage, positions // self._storage.unroll
        position = positions + np.arange(storage.unroll)[:, None]
        rows = np.concatenate([position, storage.tail.take(slot)[None]])
        drawn = {f"observation.{name}": storage.film(name, rows) for name in storage.frames}
        drawn |= {name: store.take(position, axis=0) for name, store in storage.steps.items() if name != "ended"}
        drawn |= {name: store.take(slot, axis=0) for name, store in storage.chunks.items()}
        drawn["first"] = np.concatenate([drawn["first"], drawn.pop("first_after")[None]])
        drawn["versions"] = np.ascontiguousarray(drawn["versions"].T)
        finals = storage.final_row.take(position).ravel()
        drawn["final_index"] = np.flatnonzero(finals >= 0).astype(np.int32)
        last = finals.take(drawn["final_index"])
        return drawn | prefixed("final", {name: storage.observe(name, last) for name in storage.frames})


class Hindsight:
    """Transitions of finished episodes, k of k + 1 with a goal that was reached later (Andrychowicz et al., 2017)."""

    def __init__(self, storage: Storage, config: TableConfig) -> None:
        self._storage, self._transitions = storage, Transitions(storage, config)
        self._share, self._strategy = config.her.k / (config.her.k + 1), config.her.strategy
        self._discount = config.discount or 1.0
        # Of each step's episode: the id of its first step, and the steps that are left of it.
        self._start, self._left = np.empty((2, storage.capacity), np.int64)
        self.tables: Arrays = {"start": self._start, "left": self._left, **self._transitions.tables}

    def complete(self, ids: np.ndarray, number: int, memory: Arrays) -> Complete:
        storage, unroll = self._storage, self._storage.unroll
        kept = {name: memory.pop(name) for name in [*memory] if name not in ("ids", "done")}
        self._transitions.complete(ids, number, memory)
        times = np.arange(unroll)[:, None]
        position = ids % storage.capacity + times
        opened = np.maximum.accumulate(np.where(storage.steps["first"].take(position), times, -1), axis=0)
        before = kept.pop("started", ids)
        start = np.where(opened < 0, np.where(before < 0, ids, before), ids + opened)
        t, column = np.nonzero(storage.steps["valid"].take(position))
        held = {"id": ids[column] + t, "column": column, "step": t, "start": start[t, column]}
        if kept:
            kept["step"] = kept["step"] - unroll
            held = {name: np.append(kept[name], array) for name, array in held.items()}
        end = _next_end(storage.steps["ended"].take(position))[np.maximum(held["step"], 0), held["column"]]
        alive = storage.has(held["id"])
        whole = alive & (end < unroll)
        complete = held["id"][whole] % storage.capacity
        self._left[complete], self._start[complete] = (end - held["step"])[whole], held["start"][whole]
        # After a step that is no decision the next unroll goes on with an episode of its own.
        started = np.where(storage.steps["valid"].take(position[-1]), start[-1], -1)
        memory.update({name: array[alive & ~whole] for name, array in held.items()}, started=started)
        return complete, None

    def gather(self, positions: np.ndarray, random: np.random.Generator) -> Arrays:
        """What Transitions gives, with desired_goal an achieved_goal of the same episode where `relabelled` [n] bool
        says so: the rewards there are to be computed again, and the discounts are those of a step that ends nothing."""
        storage, drawn = self._storage, self._transitions.gather(positions, random)
        drawn["relabelled"] = random.random(len(positions)) < self._share
        chosen = np.flatnonzero(drawn["relabelled"])
        drawn["discount"][chosen] = self._discount
        since, left = positions[chosen], self._left.take(positions[chosen])
        if self._strategy == "episode":
            # What was evicted of the episode is no goal any more.
            start = self._start.take(since)
            since = np.where(start >= storage.oldest, start % storage.capacity, since)
            left = self._left.take(since)
        offset = left if self._strategy == "final" else (random.random(len(left)) * (left + 1)).astype(np.int64)
        goal = storage.observe("achieved_goal", self._transitions.following.take(storage.ahead(since, offset)))
        drawn["observation.desired_goal"][chosen] = drawn["next_observation.desired_goal"][chosen] = goal
        return drawn


Items = Transitions | Sequences | Unrolls | Hindsight


def kind_of(config: TableConfig) -> type[Items]:
    """Gives the kind of item that a ring's config describes."""
    if config.kind == "unrolls":
        return Unrolls
    return Sequences if config.sequence else Hindsight if config.her.k else Transitions


# The prefixes of what each kind needs once per chunk.
PER_CHUNK: dict[type[Items], tuple[str, ...]] = {
    Unrolls: ("state.", "reward_before", "versions"),
    Sequences: ("state.", "reward_before"),
}


def _next_end(ended: np.ndarray) -> np.ndarray:
    """Gives for each step of [T, B] the row of the first end from it on, T where there is none."""
    rows = np.where(ended, np.arange(len(ended))[:, None], len(ended))
    return np.minimum.accumulate(rows[::-1], axis=0)[::-1]
