"""Watches a running job: polls its services in the background and makes one Snapshot of what they say.

Knows what the metrics mean together (rates, the goal, the bottleneck); how they are shown is `display.py`'s business.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.control.board import Board, ProcessState
from services.control.compose import Plan
from services.control.readings import Reading, read, sum_of, total

Source = Callable[[ProcessState], Awaitable[Reading | None]]

POLL_S = 0.5
RATE_WINDOW_S = 5.0
ETA_WINDOW_S = 30.0
SLOW_S = 1.0  # waiting for less than this is not news
SILENT_S = 2.0  # a busy machine may miss a poll or two
HISTORY = 512
BUSY_SHARE = 0.4
_LIMITS = "headrace_learner_stop_limit"
_ADDRESS = re.compile(r" at \w+://[^\s:]+(:\d+)?")

# What each role spends its time on; the busiest per process is what the job waits for.
WORK = {
    "env": "headrace_env_work_seconds_total",
    "inference": "headrace_inference_forward_seconds_sum",
    "learner": "headrace_learner_update_seconds_sum",
}
QUEUES = {
    "acts": "headrace_inference_queue_depth",
    "inserts": "headrace_replay_queue_depth",
    "batches": "headrace_learner_queue_depth",
}


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One line of the process table."""

    name: str
    pid: int
    state: str
    good: bool
    restarts: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of the job now. Counts are totals, rates per second; None is not known yet.

    `progress` stays None where nothing but a signal ends the job.
    """

    seconds: float = 0.0
    steps: float | None = None
    frames: float | None = None
    updates: float | None = None
    episodes: float | None = None
    steps_s: float | None = None
    frames_s: float | None = None
    trained_steps_s: float | None = None
    episode_return: float | None = None
    episode_length: float | None = None
    policy_lag: float | None = None
    progress: float | None = None
    eta_s: float | None = None
    queues: tuple[tuple[str, float], ...] = ()
    bottleneck: str = ""
    returns: tuple[float, ...] = ()
    processes: tuple[ProcessRow, ...] = ()


def http_source(plan: Plan) -> Source:
    """Gives the source that asks each process at the address it announced."""
    announce: dict[str, Path] = {process.name: process.announce for process in plan.processes}

    async def source(state: ProcessState) -> Reading | None:
        if state.phase not in ("running", "stopping"):
            return None
        try:
            url = announce[state.name].read_text()
        except OSError:
            return None
        return await read(url)

    return source


class Monitor:
    """Polls `source` for each process of `board`; `snapshot` gives the newest picture, `poll_forever` keeps it new.

    `goal` is the mean return that ends the job, None where only limits do; `started` is when the job began, in
    monotonic seconds. Who learns them late may set them while it runs.
    """

    def __init__(self, board: Board, source: Source, goal: float | None = None) -> None:
        self._board = board
        self._source = source
        self.goal = goal
        self.started = time.monotonic()
        self._readings: dict[str, Reading] = {}
        self._learner = Reading()
        self._points: deque[tuple[float, dict[str, float]]] = deque()
        self._returns: list[float] = []
        self._notices: dict[str, object] = {}
        self._heard: dict[str, tuple[int, float, Reading]] = {}
        self.snapshot = Snapshot()

    async def poll_forever(self) -> None:
        while True:
            await self.poll()
            await asyncio.sleep(POLL_S)

    async def poll(self) -> None:
        """Asks every process once and renews `snapshot`."""
        states = list(self._board.processes.values())
        answers = await asyncio.gather(*(self._source(state) for state in states))
        self._readings = {s.name: a for s, a in zip(states, answers, strict=True) if a is not None}
        for name, reading in self._readings.items():
            notice = reading.health.get("notice")
            if notice and notice != self._notices.get(name):
                self._notices[name] = notice
                self._board.say(f"{name}: {notice}")
        self.refresh(time.monotonic())

    def refresh(self, now: float) -> None:
        """Makes `snapshot` from the latest readings and the board at `now` (monotonic seconds)."""
        # Between two lives of the learner its last words stand.
        self._learner = self._readings.get("learner", self._learner)
        self._note(now)
        learner = self._learner.samples
        episodes = learner.get("headrace_learner_episodes_total")
        self.snapshot = Snapshot(
            seconds=now - self.started,
            steps=learner.get("headrace_learner_env_steps"),
            frames=learner.get("headrace_learner_env_frames"),
            updates=learner.get("headrace_learner_updates_total"),
            episodes=episodes,
            steps_s=self._rate("headrace_learner_env_steps"),
            frames_s=self._rate("headrace_learner_env_frames"),
            trained_steps_s=self._rate("headrace_learner_trained_steps_total"),
            episode_return=learner.get("headrace_learner_episode_return") if episodes else None,
            episode_length=learner.get("headrace_learner_episode_length_steps") if episodes else None,
            policy_lag=learner.get("headrace_learner_policy_lag_max_versions"),
            progress=self._progress(),
            eta_s=self._eta(),
            queues=tuple((word, depth) for word, name in QUEUES.items() if (depth := self._sum(name)) is not None),
            bottleneck=self._bottleneck(),
            returns=tuple(self._returns),
            processes=tuple(self._row(state, now) for state in self._board.processes.values()),
        )

    def _note(self, now: float) -> None:
        """Keeps the points that rates are taken from, and the curve of returns."""
        point = {
            name: value
            for name in (
                "headrace_learner_env_steps",
                "headrace_learner_env_frames",
                "headrace_learner_trained_steps_total",
            )
            # One that goes on from a checkpoint counts 0 until its first update: what it had before is no growth.
            if (value := total(self._learner.samples, name))
        }
        point |= {name: value for name in WORK.values() if (value := self._sum(name)) is not None}
        if self._learner.samples.get("headrace_learner_episodes_total"):
            self._returns.append(self._learner.samples.get("headrace_learner_episode_return", 0.0))
            if len(self._returns) > HISTORY:
                self._returns = self._returns[::2]
        if progress := self._progress():
            # Known from the first update on too: the way to where a checkpoint was is no progress of this life.
            point["progress"] = progress
        self._points.append((now, point))
        while now - self._points[0][0] > ETA_WINDOW_S:
            self._points.popleft()

    def _sum(self, name: str) -> float | None:
        return sum_of(self._readings.values(), name)

    def _rate(self, name: str, window_s: float = RATE_WINDOW_S) -> float | None:
        """Gives the growth of a value per second over the last `window_s`, None where it is not known."""
        newest, last = self._points[-1]
        known = [(at, point[name]) for at, point in self._points if name in point and newest - at <= window_s]
        if name not in last or len(known) < 2 or known[-1][0] <= known[0][0]:
            return None
        # A process that started again counts from nothing, which is no negative speed.
        return max(0.0, (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0]))

    def _progress(self) -> float | None:
        """Gives how much of the job is done, 0 to 1: of its nearest limit, or of the way from its first return."""
        if self.goal is None and total(self._learner.samples, _LIMITS) is None:
            return None
        done = self._learner.samples.get("headrace_learner_progress_ratio", 0.0)
        if self.goal is not None and self._returns and self._returns[0] < self.goal:
            done = max(done, (self._returns[-1] - self._returns[0]) / (self.goal - self._returns[0]))
        return min(1.0, max(0.0, done))

    def _eta(self) -> float | None:
        progress, rate = self._points[-1][1].get("progress", 0.0), self._rate("progress", ETA_WINDOW_S)
        return (1.0 - progress) / rate if rate and 0.02 < progress < 1.0 else None

    def _bottleneck(self) -> str:
        """Names the role whose processes are the busiest, if they are busy most of the time or nearly."""
        shares = {}
        for role, name in WORK.items():
            rate = self._rate(name)
            count = sum(state.role == role for state in self._board.processes.values())
            shares[role] = (rate or 0.0) / max(1, count)
        role = max(shares, key=lambda name: shares[name])
        return role if shares[role] >= BUSY_SHARE else ""

    def _row(self, state: ProcessState, now: float) -> ProcessRow:
        reading = self._readings.get(state.name)
        if reading is not None:
            self._heard[state.name] = (state.life, now, reading)
        life, at, last = self._heard.get(state.name, (0, 0.0, Reading()))
        text, good = _describe(state, last.health if life == state.life else {}, now - at)
        return ProcessRow(state.name, state.pid, text, good, state.restarts)


def _describe(state: ProcessState, health: Mapping[str, object], silent_s: float) -> tuple[str, bool]:
    """Gives a process's state in words, and whether all is well; `health` is what this life of it said last."""
    if state.phase == "restarting":
        return "died, restarting", False
    if state.phase != "running":
        return state.phase, True
    if not health:
        return "starting", True
    if silent_s >= SILENT_S:
        return f"no answer for {silent_s:.0f} s", False
    waiting_s = float(str(health.get("waiting_s") or 0.0))
    if health.get("waiting_for") and (waiting_s >= SLOW_S or not health.get("ready")):
        # The address says nothing here that the peer's name does not, and it is long.
        why = _ADDRESS.sub("", str(health["waiting_for"]))
        why = f" {why.removeprefix('waits ')}" if why.startswith("waits for ") else f": {why}"
        return f"waiting {waiting_s:.0f} s{why}", False
    return ("ready", True) if health.get("ready") else ("starting", True)
