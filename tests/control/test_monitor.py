"""One picture of the job from what its services say."""

from __future__ import annotations

import pytest

from services.control.board import Board, ProcessState
from services.control.monitor import Monitor
from services.control.readings import Reading

HEALTHY = {"ready": True, "waiting_for": None, "waiting_s": 0.0, "notice": None}


class Job:
    """A job whose services say what the test puts into `says`."""

    def __init__(self, goal: float | None = None) -> None:
        self.board = Board()
        for name, role in (("learner", "learner"), ("env-0", "env"), ("env-1", "env")):
            self.board.processes[name] = ProcessState(name, role, "running", 100, life=1)
        self.says: dict[str, Reading | None] = {}
        self.monitor = Monitor(self.board, self.read, goal)

    async def read(self, state: ProcessState) -> Reading | None:
        return self.says.get(state.name)

    async def learner(self, **samples: float) -> None:
        named = {f"headrace_learner_{name}": value for name, value in samples.items()}
        self.says["learner"] = Reading(named, HEALTHY)
        await self.monitor.poll()


def states(job: Job) -> dict[str, tuple[str, bool]]:
    return {row.name: (row.state, row.good) for row in job.monitor.snapshot.processes}


async def test_rates_are_growth_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job()
    clock = [1000.0]
    monkeypatch.setattr("services.control.monitor.time.monotonic", lambda: clock[0])
    for steps in (100.0, 400.0, 1300.0):
        await job.learner(
            env_steps=steps,
            env_frames=4 * steps,
            trained_steps_total=steps / 2,
            progress_ratio=steps / 4000,
            stop_limit=4000.0,
        )
        clock[0] += 2.0
    shot = job.monitor.snapshot
    assert (shot.steps, shot.steps_s, shot.frames_s, shot.trained_steps_s) == (1300.0, 300.0, 1200.0, 150.0)
    assert shot.progress == pytest.approx(0.325)
    assert shot.eta_s == pytest.approx(0.675 / 0.075)


async def test_a_learner_that_restarts_keeps_its_last_figures_and_never_runs_backwards() -> None:
    job = Job()
    await job.learner(env_steps=500.0)
    job.says.clear()
    job.board.processes["learner"].phase = "restarting"
    await job.monitor.poll()
    assert job.monitor.snapshot.steps == 500.0
    await job.learner(env_steps=10.0)
    assert job.monitor.snapshot.steps_s == 0.0


async def test_what_a_resumed_learner_had_before_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job()
    clock = [1000.0]
    monkeypatch.setattr("services.control.monitor.time.monotonic", lambda: clock[0])
    for steps in (0.0, 60_000.0, 64_000.0):
        await job.learner(env_steps=steps, progress_ratio=steps / 100_000, stop_limit=100_000.0)
        clock[0] += 2.0
    assert job.monitor.snapshot.steps_s == 2000.0
    assert job.monitor.snapshot.eta_s == pytest.approx(18.0)


async def test_return_is_unknown_until_an_episode_has_ended() -> None:
    job = Job()
    await job.learner(episode_return=0.0, episodes_total=0.0)
    assert job.monitor.snapshot.episode_return is None
    await job.learner(episode_return=21.5, episodes_total=3.0)
    assert job.monitor.snapshot.episode_return == 21.5
    assert job.monitor.snapshot.returns == (21.5,)


async def test_states_say_who_waits_for_whom_and_who_died() -> None:
    job = Job()
    job.says["learner"] = Reading(
        {}, HEALTHY | {"waiting_for": "waits for the replay-server at ipc:///tmp/x: no room", "waiting_s": 12.4}
    )
    job.says["env-0"] = Reading({}, HEALTHY | {"waiting_for": "actions", "waiting_s": 0.2})
    job.says["inference-0"] = Reading({}, HEALTHY | {"waiting_for": "lost the learner-server", "waiting_s": 3.0})
    job.board.processes["inference-0"] = ProcessState("inference-0", "inference", "running")
    job.board.processes["env-1"].phase = "restarting"
    await job.monitor.poll()
    assert states(job) == {
        "inference-0": ("waiting 3 s: lost the learner-server", False),
        "learner": ("waiting 12 s for the replay-server: no room", False),
        "env-0": ("ready", True),
        "env-1": ("died, restarting", False),
    }


async def test_silence_is_told_from_starting_and_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job()
    clock = [1000.0]
    monkeypatch.setattr("services.control.monitor.time.monotonic", lambda: clock[0])
    for name in job.board.processes:
        job.says[name] = Reading({}, HEALTHY)
    await job.monitor.poll()
    job.says.clear()
    job.board.processes["env-0"].life = 2
    job.board.processes["env-1"].phase = "stopping"
    await job.monitor.poll()
    assert states(job)["learner"] == ("ready", True)
    clock[0] += 3.0
    await job.monitor.poll()
    assert states(job) == {
        "learner": ("no answer for 3 s", False),
        "env-0": ("starting", True),
        "env-1": ("stopping", True),
    }


async def test_a_notice_is_said_once() -> None:
    job = Job()
    job.says["env-0"] = Reading({}, HEALTHY | {"notice": "group env-1/0 missed the deadline"})
    await job.monitor.poll()
    await job.monitor.poll()
    assert list(job.board.notices) == ["env-0: group env-1/0 missed the deadline"]


async def test_the_busiest_role_is_the_bottleneck_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job()
    clock = [0.0]
    monkeypatch.setattr("services.control.monitor.time.monotonic", lambda: clock[0])
    for seconds in (0.0, 1.0):
        clock[0] = seconds
        # Two env-servers at 50 % each are less busy than one learner at 60 %.
        for name in ("env-0", "env-1"):
            job.says[name] = Reading({"headrace_env_work_seconds_total": 0.5 * seconds}, HEALTHY)
        await job.learner(update_seconds_sum=0.6 * seconds)
    assert job.monitor.snapshot.bottleneck == "learner"


async def test_a_job_that_nothing_ends_has_no_progress() -> None:
    job = Job()
    await job.monitor.poll()
    assert job.monitor.snapshot.progress is None
    await job.learner(env_steps=500.0, progress_ratio=0.0)
    assert job.monitor.snapshot.progress is None
    await job.learner(env_steps=500.0, progress_ratio=0.25, stop_limit=2000.0)
    assert job.monitor.snapshot.progress == 0.25


async def test_progress_is_that_of_the_nearest_end() -> None:
    job = Job(goal=475.0)
    progress = []
    for mean, ratio in ((25.0, 0.01), (250.0, 0.1), (250.0, 0.7), (10.0, 0.0), (500.0, 0.8)):
        await job.learner(episode_return=mean, episodes_total=1.0, progress_ratio=ratio)
        progress.append(job.monitor.snapshot.progress)
    assert progress == [0.01, 0.5, 0.7, 0.0, 1.0]
