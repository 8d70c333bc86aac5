"""What `headrace bench` counts, and how it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import faulty
import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from jobs import ENVIRON, PATIENCE_S

from common.config import CONFIGS, Config, load, validate
from common.errors import ConfigError, HeadraceError
from services.control.bench import collect
from services.control.bench.collect import interleave
from services.control.bench.jobs import FOLDER, collect_job, train_job
from services.control.bench.numpy_cartpole import NumpyCartPole
from services.control.bench.pipeline import Measured, collecting, open_pipeline
from services.control.bench.profile import recorded, shares, table
from services.control.bench.report import Report, Row, show_ratio
from services.control.bench.subjects import plain_env, rate, step_alone, step_and_infer, step_infer_learn
from services.control.bench.train import bench_train, enough, measured, train_rate


class Desk(gymnasium.Env[np.ndarray, dict[str, Any]]):
    """Takes no action but those of its Dict."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space: gymnasium.Space[Any] = spaces.Dict(
        {"keys": spaces.MultiBinary(2), "move": spaces.Box(2.0, 3.0, (2,), np.float32), "door": spaces.Discrete(4)}
    )

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return np.zeros(2, np.float32), 0.0, False, False, {}


NULL = (
    "env.id=headrace/Null-v0",
    "env.kwargs={step_s: 0.0025, sleep: true, episode_steps: 50}",
    "env.groups=1",
    "env.envs=4",
    "rollout.unroll=8",
)
REPORT = Report(
    "CartPole-v1, collecting",
    "ours, tuned",
    (Row("ours, tuned", (400.0, 200.0, 300.0)), Row("limit", (800.0, 800.0, 400.0)), Row("a peer", (100.0, 60.0, 0.0))),
)


def test_ratios_are_taken_repetition_by_repetition_where_none_failed() -> None:
    ours, limit, peer = REPORT.rows
    assert REPORT.ratios(ours) == ()
    assert REPORT.ratios(limit) == (0.5, 0.25, 0.75)
    assert REPORT.ratios(peer) == ()


def test_a_report_as_markdown_and_json(tmp_path: Path) -> None:
    assert REPORT.markdown().splitlines() == [
        "| CartPole-v1, collecting | steps/s, median | min to max | ours, tuned is |",
        "|---|---|---|---|",
        "| ours, tuned | 300 | 200 to 400 |  |",
        "| limit | 800 | 400 to 800 | 0.50 x (0.25 to 0.75) |",
        "| a peer | 60 | 0 to 100 |  |",
    ]
    REPORT.write(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["rows"][1]["rates"] == [800.0, 800.0, 400.0]
    assert found["rows"][1]["ratios"] == [0.5, 0.25, 0.75]
    assert f"{os.cpu_count()} cores" in found["machine"]


def test_large_ratios_have_no_decimals() -> None:
    assert show_ratio((105.4, 120.0, 99.0)) == "105 x (99 to 120)"


def test_the_ratio_of_one_repetition_has_no_spread() -> None:
    assert show_ratio((3.75,)) == "3.75 x"


def test_subjects_take_turns() -> None:
    calls: list[str] = []

    def subject(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = interleave({"a": lambda: subject("a"), "b": lambda: subject("b")}, 2, lambda text: None)
    assert calls == ["a", "b", "a", "b"]
    assert found == {"a": (1.0, 3.0), "b": (2.0, 4.0)}


def test_trained_steps_are_counted_after_the_warm_up(tmp_path: Path) -> None:
    progress = tmp_path / "progress.csv"
    rows = ["0.5,900,800,8", "1.0,1000,1000,10", "2.0,1300,1200,30", "3.0,2000,1400,50"]
    progress.write_text("\n".join(["seconds,steps,trained_steps,updates", *rows, ""]))
    assert measured(progress, 1.0) == 200.0
    with pytest.raises(HeadraceError, match="too few updates"):
        measured(progress, 2.5)


def test_trained_steps_are_not_counted_while_the_queues_fill(tmp_path: Path) -> None:
    # 100 steps are trained a second; 300 are collected until 500 wait, and then as many as are trained.
    progress = tmp_path / "progress.csv"
    rows = [(t, min(300 * t, 500 + 100 * t), 100 * t) for t in range(1, 9)]
    progress.write_text("seconds,steps,trained_steps,updates\n" + "".join(f"{t},{s},{n},{t}\n" for t, s, n in rows))
    assert measured(progress, 1.0) == 100.0


def test_a_job_is_measured_until_seconds_and_updates_are_enough(tmp_path: Path) -> None:
    progress = tmp_path / "progress.csv"
    assert not enough(progress, 0.5, 4.0)
    for last, seconds, found in ((20, 4.0, False), (21, 4.0, True), (21, 12.0, False)):
        rows = "".join(f"{t / 2},{10 * t},{10 * t},{t}\n" for t in range(1, last + 1))
        # What is being written meanwhile is not read.
        progress.write_text(f"seconds,steps,trained_steps,updates\n{rows}99,9")
        assert enough(progress, 0.5, seconds) is found
    # Of few updates many seconds are not enough.
    progress.write_text("seconds,steps,trained_steps,updates\n1,10,10,1\n90,20,20,2\n")
    assert not enough(progress, 0.5, 4.0)


def test_the_numpy_cartpole_moves_as_gymnasiums() -> None:
    poles = NumpyCartPole(3, (16, 16))
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    state = np.array([0.1, -0.4, 0.05, 0.3], np.float32)
    poles._state[:] = state[:, None]
    env.state = state.astype(np.float64)  # type: ignore[attr-defined]
    for action in (1, 0, 0, 1, 1, 1, 0, 1):
        seen = env.step(action)[0]
        poles._advance(np.full(3, bool(action)))
    assert np.allclose(poles._state[:, 1], seen, atol=1e-5)


def test_the_numpy_cartpole_starts_anew_where_an_episode_ends() -> None:
    poles = NumpyCartPole(2, (16,))
    poles._state[0] = (2.39, 0.0)
    poles._state[1, 0] = 3.0
    poles._ages[:] = (10, 20)
    assert poles.step() == 2
    assert abs(poles._state[0, 0]) <= 0.05
    assert poles._ages.tolist() == [0, 21]


def test_samples_of_threads_that_do_not_wait_are_counted_by_the_innermost_function_of_ours() -> None:
    raw = (
        "main (services/env_server/server.py:1);step (common/codec.py:7);dot (numpy/core.py:3) 5\n"
        "_worker (concurrent/futures/thread.py:83);step (common/codec.py:9) 2\n"
        "main (services/env_server/server.py:1);Runner.run (asyncio/runners.py:118) 4\n"
        "serve_forever (socketserver.py:1);poll (selectors.py:2) 9\n"
    )
    assert shares(raw) == {"step (common/codec.py)": 7, "(the event loop itself)": 4}


def test_a_profile_is_shown_in_cores_largest_first() -> None:
    counted = Counter({"a": 10, "b": 100, "c": 30, "d": 20, "e": 15, "f": 12, "g": 0})
    assert table({"env-0": (0.4675, counted), "replay-0": (0.0025, Counter({"h": 1, "i": 0}))}).splitlines()[2:] == [
        "| env-0 | 0.47 | all of it |",
        "| | 0.25 | `b` |",
        "| | 0.07 | `c` |",
        "| | 0.05 | `d` |",
        "| | 0.04 | `e` |",
        "| | 0.03 | `f` |",
        "| replay-0 | 0.00 | all of it |",
    ]


def test_a_collect_run_holds_nothing_back() -> None:
    sync = collecting(load(None, ["env.envs=8"], {}))
    assert (sync.replay.max_policy_lag, sync.learner.batch, sync.inference.max_batch) == (1, 1, 1)
    free = collecting(load(CONFIGS / "cartpole_ppo_async.yaml", (), {}))
    assert free.inference.max_batch == 4096
    ring = "replay.tables={ring: {kind: uniform, capacity: 64, samples_per_insert: 2.0}}"
    tables = ("rollout.tables=[ring]", "learner.table=ring", "learner.batch=8")
    assert collecting(load(None, [ring, *tables], {})).replay.tables["ring"].samples_per_insert == 0.0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_collects_in_the_place_of_any_overlay_is_a_config_that_services_take(path: Path) -> None:
    config = collecting(load(path, (), {}))
    assert validate(config.model_dump(mode="json")).rollout.tables == config.rollout.tables


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_trained_is_asynchronous_with_one_epoch(path: Path) -> None:
    config = load(path, (), {})
    assert path.stem == f"{config.env.id.rpartition('/')[2].lower()}_ppo"
    assert not config.synchronous
    assert config.algorithm["epochs"] == 1
    assert train_job(config.env.id)[1] == config


def test_the_limit_is_of_the_tuned_jobs_network_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, tuned, bound = collect_job("CartPole-v1")
    assert default.network == tuned.network == bound.network == {"name": "mlp", "hidden": [16, 16]}
    wider = tuned.model_copy(update={"network": {"name": "mlp", "hidden": [64]}})
    seen: list[Config] = []
    monkeypatch.setattr(collect, "pipeline_rate", lambda config, seconds: seen.append(config) or Measured(8.0, {}))
    monkeypatch.setattr(collect, "rate", lambda subject, config, seconds, processes=1: seen.append(config) or 4.0)
    report = collect.bench_collect((default, wider, bound), 0.1, 1, tmp_path, lambda text: None)
    assert [config.network["hidden"] for config in seen] == [[64]] * len(report.rows)
    assert {row.name for row in report.rows} >= {"ours, tuned", "ours, default", "limit, no messages"}
    other = load(None, ["env.id=Acrobot-v1"])
    with pytest.raises(ConfigError, match="the tuned job is for CartPole-v1"):
        collect.bench_collect((default, tuned, other), 0.1, 1, tmp_path, lambda text: None)


def test_the_simulator_alone_is_stepped_with_actions_of_several_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gymnasium.registry, "Desk-v0", gymnasium.envs.registration.EnvSpec("Desk-v0", Desk))
    turn = step_alone(load(None, ["env.id=Desk-v0", "env.envs=3"], {}))
    assert [turn() for _ in range(4)] == [3] * 4


@pytest.mark.parametrize("subject", [step_and_infer, step_infer_learn])
def test_the_limits_loop_counts_decisions(subject: object) -> None:
    config = load(CONFIGS / "cartpole_ppo_async.yaml", ["env.envs=4", "rollout.unroll=8"], {})
    turn = subject(config)  # type: ignore[operator]
    counted = [turn() for _ in range(40)]
    if subject is step_and_infer:
        # Where a step after an episode's end only resets, it is no decision.
        assert 4 * 35 < sum(counted) <= 4 * 40
    else:
        assert counted[0] == 0
        assert 4 * 8 * 2 * 18 < sum(counted) <= 4 * 8 * 2 * 20


def test_a_subject_that_fails_says_so() -> None:
    config = load(None, ["env.id=CartPole-v1", "env.kwargs={nonsense: 1}"], {})
    with pytest.raises(ConfigError, match="nonsense"):
        rate(step_and_infer, config, 0.1)


def test_a_subject_that_dies_is_not_waited_for() -> None:
    with pytest.raises(HeadraceError, match="ended with exit code 9"):
        rate(faulty.dying_subject, load(None, ["env.id=CartPole-v1"], {}), 0.1)


def test_ctrl_c_ends_a_measurement_and_only_its_own_process_says_so() -> None:
    job = "import faulty, common.config as c, services.control.bench.subjects as s"
    job += "; s.rate(faulty.telling_subject, c.load(None, (), {}), 60.0, processes=2)"
    command = [sys.executable, "-c", job]
    out, err = subprocess.PIPE, subprocess.PIPE
    with subprocess.Popen(command, env=ENVIRON, start_new_session=True, text=True, stdout=out, stderr=err) as measuring:
        assert measuring.stdout is not None
        assert measuring.stdout.readline() == "runs\n"
        os.killpg(measuring.pid, signal.SIGINT)
        _, said = measuring.communicate(timeout=PATIENCE_S)
    assert measuring.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1


def test_a_profile_that_cannot_be_made_is_an_error_that_says_why() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        with pytest.raises(HeadraceError, match=r"py-spy did not record env-0: .+"):
            recorded({"env-0": other.pid}, 1.0)
        other.kill()
    with pytest.raises(HeadraceError, match="env-0 ended"):
        recorded({"env-0": other.pid}, 1.0)


def test_a_plain_game_of_ataris_is_what_a_policy_sees_elsewhere() -> None:
    env = plain_env(load(None, ["env.id=ALE/Pong-v5", "env.kwargs={repeat_action_probability: 0}"], {}))
    seen, _ = env.reset(seed=0)
    assert (seen.shape, seen.dtype) == ((4, 84, 84), np.uint8)
    env.close()


def test_a_plain_game_of_minatar_is_made_in_a_process_that_has_not_heard_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: spec for name, spec in gymnasium.registry.items() if not name.startswith("MinAtar/")}
    monkeypatch.setattr("gymnasium.envs.registration.registry", others)
    monkeypatch.setattr(gymnasium, "registry", others)
    plain_env(load(None, ["env.id=MinAtar/Breakout-v1"], {})).close()


def test_a_trained_job_is_the_one_it_was_given_whatever_the_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_ENV__ENVS", "64")
    seen: list[dict[str, str]] = []

    def start(*_: object, env: dict[str, str] | None = None, **__: object) -> Any:
        seen.append(dict(os.environ) if env is None else env)
        raise HeadraceError("not started", "this is a test")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(HeadraceError, match="not started"):
        train_rate(train_job("CartPole-v1", ("env.envs=128",))[0], 1.0)
    assert not [name for name in seen[0] if name.startswith("HEADRACE_")]
    assert "PATH" in seen[0]


def test_a_tuned_job_of_another_environment_is_refused() -> None:
    default, _ = train_job("CartPole-v1")
    _, other = train_job("HalfCheetah-v5")
    with pytest.raises(ConfigError, match="the tuned job is for HalfCheetah-v5"):
        bench_train((default, other), 1.0, 1, Path("nowhere"), print)


async def test_a_server_that_died_is_another_one_in_the_next_measurement() -> None:
    config = load(None, NULL, {})
    async with open_pipeline() as pipeline:
        await pipeline.run(config, 0.2, warm_s=0.1)
        for child in pipeline.children:
            child.process.kill()
            child.process.wait()
        assert (await pipeline.run(config, 0.2, warm_s=0.1)).steps_s > 0


async def test_the_pipeline_counts_steps_and_names_who_works_and_leaves_nothing() -> None:
    config = load(None, NULL, {})
    async with open_pipeline() as pipeline:
        first = await pipeline.run(config, 0.5, warm_s=0.1)
        served = {child.process.pid for child in pipeline.children if child.role == "inference"}
        again = await pipeline.run(config.model_copy(update={"rollout": _unroll(config, 16)}), 0.5, warm_s=0.1)
        still = {child.process.pid for child in pipeline.children if child.role == "inference"}
        pids = [child.process.pid for child in pipeline.children]
        folder = pipeline._folder
    # Four environments of 2.5 ms one after another: never more than 400 steps in a second of stepping. Other work makes
    # them fewer, but not a hundredth: that would be another unit.
    for found in (first, again):
        assert 4 < found.steps_s / found.busy["env"] <= 400
        assert found.busy["env"] > found.busy["inference"]
    assert served == still
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert not folder.exists()


def _unroll(config: Config, steps: int) -> object:
    return config.rollout.model_copy(update={"unroll": steps})


async def test_a_process_that_ends_is_named_with_its_last_words() -> None:
    config = load(None, [*NULL, "env.kwargs={nonsense: 1}"], {})
    async with open_pipeline() as pipeline:
        with pytest.raises(HeadraceError, match="env-0 ended with exit code 2") as caught:
            await pipeline.run(config, 0.5)
    assert "nonsense" in caught.value.remedy


@pytest.mark.parametrize("command", ["collect", "train", "wire", "replay"])
def test_help_is_there_for_each_benchmark(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.control.cli", "bench", command, "--help"],
        cwd=CONFIGS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    options = ("--json", "--repeat") if command == "wire" else ("--json", "--repeat", "--seconds")
    assert not [option for option in options if option not in done.stdout]
