"""What the learner does when its batches are bad, when none come, and when the job is over without it."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import zmq
from full_disk import files_of_at_most
from jobs import Job, Service, by_hand, short_dir, until, write_config

from common.config import validate
from common.service import make_context, supervise
from services.learner_server import server
from services.learner_server.checkpoint import find

BASE: dict[str, Any] = {
    "env": {"id": "paced:cartpole", "groups": 2, "envs": 4},
    "rollout": {"unroll": 16},
    "network": {"name": "mlp", "hidden": [8], "normalize_observations": True},
    "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
}


def net(sockets: Path, **more: Any) -> dict[str, Any]:
    act, experience = [f"ipc://{sockets}/act"], [f"ipc://{sockets}/experience"]
    return {"net": {"act": act, "experience": experience, "weights": f"ipc://{sockets}/weights", **more}}


async def test_skipped_updates_neither_stop_nor_stall_an_asynchronous_job(tmp_path: Path) -> None:
    tree = BASE | {
        "env": {**BASE["env"], "id": "paced:poisoned_cartpole"},
        "replay": {"max_policy_lag": 2, "tables": {"experience": {"kind": "fifo", "capacity": 4}}},
        "learner": {"batch": 1, "prefetch": 1},
        "stop": {"steps": 8_000},
    }
    with Job(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as job:
        assert await job.ended() == 0, job.text()
        result = job.result()
        assert result["outcome"] == "steps"
        assert "reward is not finite" in job.text()
        # Far more skips than versions of lag: each would have moved the bound by one.
        assert result["trained_steps"] < result["steps"] - 10 * 64


async def test_a_ring_leaves_out_what_is_not_finite_and_costs_no_update(tmp_path: Path) -> None:
    ring = {"kind": "uniform", "capacity": 20_000, "min_size": 500, "samples_per_insert": 4.0, "discount": 0.99}
    tree = BASE | {
        "env": {**BASE["env"], "id": "paced:poisoned_cartpole"},
        "algorithm": {"name": "dqn"},
        "replay": {"tables": {"experience": ring | {"error_buffer": 2000.0}}},
        "learner": {"batch": 32, "on_nan": "stop"},
        "stop": {"steps": 4_000},
    }
    with Job(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as job:
        assert await job.ended() == 0, job.text()
        assert job.result()["outcome"] == "steps"
    said = (tmp_path / "run" / "logs" / "replay-0.log").read_text()
    assert said.count("table experience leaves out steps that are not finite, the first one step ") == 1


async def test_a_learner_that_is_to_stop_at_what_is_not_finite_ends_and_names_it(tmp_path: Path) -> None:
    with short_dir() as sockets:
        more = {"env": {**BASE["env"], "id": "paced:poisoned_cartpole"}, "learner": {"on_nan": "stop"}}
        tree = BASE | net(sockets) | more | {"stop": {"steps": 4_000}}
        with by_hand(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as services:
            # Not to be started again, as 1 would be.
            assert await services["learner"].ended() == 2
            assert "error: learner.on_nan=stop: reward is not finite" in services["learner"].text()


async def test_a_learner_that_skips_every_update_ends_and_says_why(tmp_path: Path) -> None:
    with short_dir() as sockets:
        tree = BASE | net(sockets) | {"env": {**BASE["env"], "id": "paced:poisoned_cartpole", "kwargs": {"every": 1}}}
        with by_hand(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as services:
            assert await services["learner"].ended() == 2
            text = services["learner"].text()
    assert "error: 100 updates in a row were skipped, the last since reward is not finite" in text
    assert text.count("update 0 skipped") == 100


async def test_a_second_learner_in_a_run_directory_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with short_dir() as sockets:
        config = write_config(tmp_path / "config.yaml", BASE | net(sockets))
        with by_hand(config, run, ["learner"]) as services:
            await until(lambda: "run directory" in services["learner"].text(), "the first one's start")
            elsewhere = [f"net.weights=ipc://{sockets}/other"]
            second = Service("learner", config, run, elsewhere, index=1)
            assert await second.ended() == 2, second.text()
            assert "another learner writes to" in second.text()
            assert services["learner"].process.poll() is None


async def test_the_time_limit_holds_while_no_batch_comes(tmp_path: Path) -> None:
    with short_dir() as sockets:
        # Of a step in a minute: no unroll is ever full.
        slow = {"env": {"id": "headrace/Null-v0", "kwargs": {"step_s": 60.0, "sleep": True}}}
        config = write_config(tmp_path / "config.yaml", BASE | net(sockets) | slow | {"stop": {"seconds": 1.0}})
        with by_hand(config, tmp_path / "run") as services:
            assert await services["learner"].ended() == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["outcome"], result["updates"]) == ("seconds", 0)


async def test_a_job_that_ends_on_a_full_disk_waits_for_room_and_keeps_what_it_ends_with(tmp_path: Path) -> None:
    run, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    with short_dir() as sockets:
        tree = BASE | net(sockets) | {"network": {"name": "mlp", "hidden": [64, 64]}, "stop": {"seconds": 6.0}}
        with by_hand(write_config(tmp_path / "config.yaml", tree), run) as services:
            learner = services["learner"]
            await until(lambda: (run / "progress.csv").exists(), "training")
            resource.prlimit(learner.process.pid, resource.RLIMIT_FSIZE, (20_000, limits[1]))
            await until(lambda: "no checkpoint after update" in learner.text(), "the end without room")
            assert not (run / "checkpoints" / "latest").exists()
            resource.prlimit(learner.process.pid, resource.RLIMIT_FSIZE, limits)
            assert await learner.ended() == 0, learner.text()
    result = json.loads((run / "result.json").read_text())
    assert (result["outcome"], int(find(run).name)) == ("seconds", result["updates"])


async def test_a_learner_that_starts_on_a_full_disk_says_so_and_leaves_no_half_of_a_config(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    with short_dir() as sockets:
        context = make_context(validate(BASE | net(sockets)), "learner", run_dir=run)
        with files_of_at_most(100):
            assert await supervise(context, server.run) == 1
    assert "is a disk full" in caplog.text
    assert not (run / "config.yaml").exists()


async def test_a_shard_that_dies_when_it_should_confirm_the_end_does_not_keep_the_job_from_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with short_dir() as sockets:
        ring = {"kind": "uniform", "capacity": 20_000, "discount": 0.99}
        tree = BASE | net(sockets) | {"algorithm": {"name": "dqn"}, "network": {"name": "mlp", "hidden": [8]}}
        tree["net"]["experience"].append(f"ipc://{sockets}/other")
        more = {"replay": {"servers": 2, "tables": {"experience": ring}}, "learner": {"batch": 32}}
        config = write_config(tmp_path / "config.yaml", tree | more | {"stop": {"seconds": 4.0}})
        with by_hand(config, run) as services:
            shard, learner = Service("replay", config, run, index=1), services["learner"]
            try:
                await until(lambda: (run / "progress.csv").exists(), "training")
                shard.process.send_signal(signal.SIGSTOP)
                await until(lambda: "checkpoint:" in learner.text(), "the end")
                shard.kill()
                assert await learner.ended() == 0, learner.text()
                assert await services["inference"].ended() == 0, services["inference"].text()
            finally:
                shard.kill()
    assert f"the replay-server at ipc://{sockets}/other has not confirmed the end of the job" in learner.text()
    assert json.loads((run / "result.json").read_text())["outcome"] == "seconds"


async def test_a_learner_that_comes_back_after_the_end_when_its_replay_server_has_gone_ends_the_others(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with short_dir() as sockets:
        tree = BASE | net(sockets, deadline_s=1.0, linger_s=30.0) | {"stop": {"steps": 1_000}}
        config = write_config(tmp_path / "config.yaml", tree)
        with by_hand(config, run) as services:
            assert await services["learner"].ended() == 0
        (run / "result.json").unlink()
        again, inference = Service("learner", config, run), Service("inference", config, run)
        try:
            assert await inference.ended() == 0, inference.text()
            assert "the learner has reached its goal: steps" in inference.text()
            assert await again.ended() == 0, again.text()
        finally:
            again.kill()
            inference.kill()
    assert json.loads((run / "result.json").read_text())["outcome"] == "steps"


async def test_a_checkpoint_that_cannot_be_written_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    tree = BASE | {"learner": {"checkpoint": {"interval_s": 0.2}}, "stop": {"steps": 1_000_000_000}}
    with Job(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as job:
        await until(lambda: (checkpoints / "latest").exists(), "a checkpoint")
        # In the place of a full disk: nothing can be written below a file.
        await until(lambda: _swapped(checkpoints), "checkpoints out of the way")
        log = tmp_path / "run" / "logs" / "learner.log"
        await until(lambda: "no checkpoint after update" in log.read_text(), "the failure, said")
        assert "make room there" in log.read_text()
        before = job.updates()
        await until(lambda: job.updates() > before, "more updates")
        checkpoints.unlink()
        checkpoints.with_name("aside").rename(checkpoints)
        job.interrupt()
        assert await job.ended() == 0, job.text()
    assert "(pid " not in job.text(), "a service was lost"


def _swapped(checkpoints: Path) -> bool:
    """Puts a file where the checkpoints were, unless one is being written just now."""
    try:
        checkpoints.rename(checkpoints.with_name("aside"))
        checkpoints.touch(exist_ok=False)
    except OSError:
        return False
    return True


async def test_a_learner_that_comes_back_to_a_finished_job_says_so_and_a_foreign_one_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with short_dir() as sockets:
        tree = BASE | net(sockets, linger_s=60.0) | {"stop": {"steps": 1_000}}
        config = write_config(tmp_path / "config.yaml", tree)
        # A connection that stays keeps the finished replay-server there.
        guest = zmq.Context.instance().socket(zmq.DEALER)
        guest.connect(f"ipc://{sockets}/experience")
        try:
            with by_hand(config, run) as services:
                assert await services["learner"].ended() == 0
                (run / "result.json").unlink()
                # Nobody will come to be told of the end.
                again = Service("learner", config, run, ["net.linger_s=0.5"])
                assert await again.ended() == 0, again.text()
                assert json.loads((run / "result.json").read_text())["outcome"] == "steps"
                foreign = Service("learner", config, tmp_path / "other")
                assert await foreign.ended() == 1
                assert "has finished another job" in foreign.text()
        finally:
            guest.close(0)
