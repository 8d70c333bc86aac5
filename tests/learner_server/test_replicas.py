"""Several ranks of a learner, as real processes, compute what one would with the whole batch."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from common.config import Config, validate
from common.errors import ConfigError, HeadraceError, PeerLost
from common.rl import ranks
from common.rl.algorithms.base import NonFiniteUpdate
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec
from services.learner_server.checkpoint import Checkpoints
from services.learner_server.replicas.columns import columns
from services.learner_server.replicas.group import Replicas
from services.learner_server.trainer import Trainer, Update

SPEC = EnvSpec("toy", (ArraySpec("obs", "<f4", (3,)),), ActionSpec("discrete", "<i8", (), (2,)))
T, B = 6, 8
ASYNCHRONOUS = {"max_policy_lag": 9, "tables": {"experience": {"kind": "fifo"}}}
NORMALIZED = {"name": "mlp", "hidden": [8], "normalize_observations": True, "popart": True}
JOBS: dict[str, dict[str, Any]] = {
    "a2c": {"algorithm": {"name": "a2c", "normalize_advantages": True}, "network": NORMALIZED},
    "ppo": {
        "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 12, "adaptive_kl": 1e-4, "curiosity": {"hidden": 8}},
        "network": NORMALIZED,
    },
    "ppo lstm": {
        "algorithm": {"name": "ppo", "epochs": 3, "minibatches": 5, "target_kl": 1e-3},
        "network": {"name": "mlp", "hidden": [8], "lstm": 4, "popart": True},
    },
    "appo": {
        "algorithm": {"name": "appo", "vtrace": True, "epochs": 2, "minibatches": 5, "value_clip": 0.2},
        "network": NORMALIZED,
        "replay": ASYNCHRONOUS,
    },
    "ppo, rollback": {
        "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 3, "rollback": {"radius": 0.01}},
        "network": NORMALIZED,
    },
    "impala lstm": {"algorithm": {"name": "impala"}, "network": {"hidden": [8], "lstm": 4}, "replay": ASYNCHRONOUS},
    "impala": {"algorithm": {"name": "impala"}, "network": NORMALIZED, "replay": ASYNCHRONOUS},
    "laser, summed": {
        "algorithm": {"name": "laser", "sum_over_batch": True, "trust_region": 0.05},
        "network": NORMALIZED,
        "replay": ASYNCHRONOUS,
    },
}


def config_of(job: str, replicas: int) -> Config:
    tree = JOBS[job]
    learner: dict[str, Any] = {"replicas": replicas, "lr": 1e-2}
    if "replay" in tree:
        learner["batch"] = 1
    return validate({**tree, "learner": learner, "env": {"envs": 6}})


def batch(seed: int, trainer: Trainer, width: int = B) -> Arrays:
    """Unrolls that no policy acted, but any may have: some steps are no decisions, some episodes are cut."""
    random = np.random.default_rng(seed)
    valid = random.random((T, width)) > 0.3
    valid[:, 1] = False  # nothing that a rank has to itself counts
    truncated = random.random((T, width)) < 0.1
    arrays = {
        "observation.obs": random.normal(size=(T + 1, width, 3)).astype(np.float32),
        "first": random.random((T + 1, width)) < 0.1,
        "action": random.integers(0, 2, (T, width)),
        "reward": (5.0 * random.normal(size=(T, width))).astype(np.float32),
        "terminated": (random.random((T, width)) < 0.1) & ~truncated,
        "truncated": truncated,
        "valid": valid,
        "extras.log_prob": random.uniform(-1.0, -0.4, (T, width)).astype(np.float32),
        "extras.parameters": random.normal(size=(T, width, 2)).astype(np.float32),
        "reward_before": np.zeros(width, np.float32),
        "versions": np.full((T, width), trainer.version),
        "online": np.arange(width) < width // 2,
        "final_index": np.flatnonzero(truncated).astype(np.int32),
        "final.obs": random.normal(size=(int(truncated.sum()), 3)).astype(np.float32),
    }
    for name in ("h", "c"):
        arrays[f"state.{name}"] = random.normal(size=(width, 4)).astype(np.float32)
    return arrays


@contextmanager
def group(config: Config, run_dir: Path, **more: Any) -> Iterator[tuple[Replicas, Trainer]]:
    """This process as rank 0, and the others."""
    with Replicas(config, run_dir, **more) as replicas:
        trainer = Trainer(config, SPEC, 1)
        state = Checkpoints(run_dir, 1).load_latest()
        if state is not None:
            trainer.load_state_dict(state["trainer"])
        replicas.form(trainer)
        yield replicas, trainer
    assert ranks.size() == 1


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """Every number and tensor of a state, by its path."""
    if isinstance(state, str):  # what the network is called
        return {}
    if not isinstance(state, dict):
        return {path: torch.as_tensor(state)}
    return {key: x for name, item in state.items() for key, x in flat(item, f"{path}.{name}").items()}


@pytest.mark.parametrize("job", JOBS)
def test_two_ranks_compute_what_one_would_with_the_whole_batch(job: str, tmp_path: Path) -> None:
    one, updates = Trainer(config_of(job, 1), SPEC, 1), 3
    alone: list[Update] = [one.update(batch(seed, one), 0.1) for seed in range(updates)]
    with group(config_of(job, 2), tmp_path) as (replicas, trainer):
        together = [replicas.update(trainer, batch(seed, trainer), 0.1) for seed in range(updates)]
        # The other rank too, to the last bit.
        replicas.compare(trainer)
    assert [update.steps for update in together] == [update.steps for update in alone]
    # Of a minibatch a rank may have no step.
    of_ppo = ("kl", "policy_loss", "value_loss", "entropy") if job.startswith("ppo") else ()
    for ours, theirs in zip(together, alone, strict=True):
        for name in ("grad_norm", "gradient_steps", "lr", *of_ppo):
            if name in theirs.scalars:
                assert ours.scalars[name] == pytest.approx(theirs.scalars[name], rel=1e-4, abs=1e-6), name
    expected, found = flat(one.state_dict()), flat(trainer.state_dict())
    assert expected.keys() == found.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# The second is in no gradient: a KL that is infinite on one rank alone.
@pytest.mark.parametrize(("job", "log_prob"), [("ppo", np.nan), ("impala", np.inf)])
def test_what_is_not_finite_on_one_rank_is_undone_by_all(job: str, log_prob: float, tmp_path: Path) -> None:
    with group(config_of(job, 2), tmp_path) as (replicas, trainer):
        replicas.update(trainer, batch(0, trainer), 0.0)
        before = flat(trainer.state_dict())
        bad = batch(1, trainer)
        # Of column 3, which is the other rank's.
        bad["valid"][:, 3], bad["extras.log_prob"][:, 3] = True, log_prob
        with pytest.raises(NonFiniteUpdate, match="nothing has changed"):
            replicas.update(trainer, bad, 0.0)
        after = flat(trainer.state_dict())
        assert all(torch.equal(after[name], x) for name, x in before.items())
        replicas.compare(trainer)
        assert replicas.update(trainer, batch(2, trainer), 0.0).steps > 0
        replicas.compare(trainer)


def test_all_ranks_go_on_from_the_checkpoint_and_say_when_they_differ(tmp_path: Path) -> None:
    config = config_of("a2c", 3)
    first = Trainer(config_of("a2c", 1), SPEC, 1)
    first.update(batch(0, first), 0.0)
    Checkpoints(tmp_path, 1).save({"trainer": first.state_dict()}, first.updates, best=False)
    with group(config, tmp_path) as (replicas, trainer):
        assert trainer.updates == 1
        replicas.update(trainer, batch(1, trainer, width=9), 0.0)
        replicas.compare(trainer)
        with torch.no_grad():
            next(trainer.policy.parameters()).view(-1)[0] += 1e-7
        with pytest.raises(HeadraceError, match=r"learner\.replicas=3: replicas \[1, 2\] have other weights than"):
            replicas.compare(trainer)


def test_the_death_of_a_rank_is_an_error_that_names_it(tmp_path: Path) -> None:
    with group(config_of("a2c", 2), tmp_path) as (replicas, trainer):
        replicas.update(trainer, batch(0, trainer), 0.0)
        (rank,) = replicas.processes
        rank.send_signal(signal.SIGKILL)
        with pytest.raises(PeerLost, match=r"learner\.replicas=2: replica 1 \(pid \d+\) was killed by SIGKILL"):
            replicas.update(trainer, batch(1, trainer), 0.0)


def test_a_rank_that_hangs_is_an_error_after_its_time_and_is_ended(tmp_path: Path) -> None:
    with group(config_of("a2c", 2), tmp_path, patience_s=2.0) as (replicas, trainer):
        (rank,) = replicas.processes
        rank.send_signal(signal.SIGSTOP)
        with pytest.raises(PeerLost, match=r"learner\.replicas=2: a replica does not answer, though all run"):
            replicas.update(trainer, batch(1, trainer), 0.0)
    assert rank.returncode == -signal.SIGKILL


def test_ranks_that_were_never_needed_end_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Replicas(config_of("a2c", 2), tmp_path) as replicas:
        (rank,) = replicas.processes
        assert rank.poll() is None
    assert rank.returncode == -signal.SIGKILL
    assert "did not end" not in caplog.text


def test_a_rank_that_waits_ends_with_a_learner_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from common.config import validate
from services.learner_server.replicas.group import Replicas
with Replicas(validate({{"learner": {{"replicas": 2}}}}), Path({str(tmp_path)!r})) as replicas:
    print(replicas.processes[0].pid, flush=True)
    sys.stdin.read()
"""
    learner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with learner:
        assert learner.stdout is not None
        rank = psutil.Process(int(learner.stdout.readline()))
        learner.kill()
        # Whoever takes in orphans may leave one that has ended unread.
        alive = [p for p in psutil.wait_procs([rank], timeout=30)[1] if p.status() != psutil.STATUS_ZOMBIE]
        assert alive == []


def test_nothing_of_a_group_listens_beyond_the_loopback(tmp_path: Path) -> None:
    def listening() -> set[tuple[str, str]]:
        text = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        lines = [line.split() for line in text.splitlines()]
        return {(line[1].split(":")[0], line[9]) for line in lines if line[3] == "0A"}

    def ours() -> set[str]:
        own = {path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
        return {address for address, inode in listening() if f"socket:[{inode}]" in own}

    before = ours()
    with group(config_of("a2c", 2), tmp_path) as (replicas, trainer):
        replicas.update(trainer, batch(0, trainer), 0.0)
        found = ours() - before
        assert found
        assert found <= {"0100007F", "00000000000000000000000001000000"}


def test_columns_are_dealt_out_in_turn_with_all_that_is_theirs() -> None:
    whole = {
        "observation.obs": np.arange(15).reshape(3, 5),
        "reward": np.array([[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]),
        "state.core": np.arange(5),
        "reward_before": np.arange(5) + 20,
        "online": np.array([True, True, False, False, False]),
        # Steps (0, 4), (1, 1), (1, 2) and (1, 3): the fifth column goes.
        "final_index": np.array([4, 6, 7, 8], np.int32),
        "final.obs": np.array([40, 11, 12, 13]),
    }
    parts = [columns(whole, rank, 2) for rank in range(2)]
    assert [part["reward"].tolist() for part in parts] == [[[0, 2], [10, 12]], [[1, 3], [11, 13]]]
    assert [part["observation.obs"][2].tolist() for part in parts] == [[10, 12], [11, 13]]
    assert [part["state.core"].tolist() for part in parts] == [[0, 2], [1, 3]]
    assert [part["reward_before"].tolist() for part in parts] == [[20, 22], [21, 23]]
    assert [part["online"].tolist() for part in parts] == [[True, False], [True, False]]
    assert [part["final_index"].tolist() for part in parts] == [[3], [2, 3]]
    assert [part["final.obs"].tolist() for part in parts] == [[12], [11, 13]]
    assert all(x.flags.c_contiguous and x.flags.writeable for part in parts for x in part.values())


def test_columns_are_equally_many() -> None:
    with pytest.raises(ConfigError, match=r"env\.envs=9 is no multiple of learner\.replicas=2.*set env\.envs to 10"):
        validate({"learner": {"replicas": 2}, "env": {"envs": 9}})


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"learner": {"device": "cuda:1"}}, r"learner\.device='cuda:1' is one device.*set it to cuda"),
        (
            {"replay": {"tables": {"experience": {"kind": "uniform", "capacity": 1000}}}, "learner": {"batch": 8}},
            r"learner\.replicas=2 share new unrolls.*kind='uniform' gives none.*set learner\.replicas to 1",
        ),
        pytest.param(
            {"learner": {"device": "cuda"}},
            r"learner\.replicas=2 need a GPU each, this machine has [01]",
            marks=pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there is a GPU for each"),
        ),
    ],
)
def test_what_replicas_cannot_share_is_refused_before_any_starts(
    tree: dict[str, Any], text: str, tmp_path: Path
) -> None:
    config = validate({**tree, "learner": {"replicas": 2, **tree["learner"]}})
    with Replicas(validate({**tree, "learner": tree["learner"]}), tmp_path) as alone:
        assert alone.processes == []
    with pytest.raises(ConfigError, match=text):
        Replicas(config, tmp_path).__enter__()
