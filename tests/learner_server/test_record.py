"""Which checkpoint a job's record calls the best, in one life of the learner and in the next."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from full_disk import files_of_at_most

from common.config import validate
from common.errors import ConfigError, HeadraceError
from common.service import make_context
from common.types import ActionSpec, ArraySpec, EnvSpec
from services.learner_server.checkpoint import find
from services.learner_server.record import Record
from services.learner_server.trainer import Trainer

SPEC = EnvSpec("toy", (ArraySpec("obs", "<f4", (3,)),), ActionSpec("discrete", "<i8", (), (2,)))
SHOWN = ("weights_version_updates", "env_steps", "env_frames", "episode_return")
# The mean is over one episode: the last.
CONFIG = validate({"network": {"hidden": [4]}, "algorithm": {"name": "a2c"}, "stop": {"episodes": 1}})


def save(record: Record, trainer: Trainer, updates: int, episode_return: float) -> None:
    """Saves after so many updates, the last episode's return being that."""
    trainer.updates = updates
    told = {
        "counters": np.array([[7, updates, updates, updates]]),
        "episode_returns": np.array([episode_return], np.float32),
        "episode_lengths": np.array([1], np.int32),
        "episode_origins": np.array([[7, updates]]),
    }
    record.tally.merge(told)
    record.save(trainer)


def test_the_best_is_the_checkpoint_of_the_highest_return_in_earlier_lives_too(tmp_path: Path) -> None:
    record, trainer = Record(make_context(CONFIG, "learner"), tmp_path), Trainer(CONFIG, SPEC, 1)
    for updates, episode_return in ((1, 1.0), (2, 3.0), (3, 2.0)):
        save(record, trainer, updates, episode_return)
    assert find(tmp_path, "best").name == "000000002"
    resumed, trainer = Record(make_context(CONFIG, "learner"), tmp_path), Trainer(CONFIG, SPEC, 2)
    resumed.resume(trainer)
    save(resumed, trainer, 4, 2.0)
    assert find(tmp_path, "best").name == "000000002"
    save(resumed, trainer, 5, 4.0)
    assert find(tmp_path, "best").name == "000000005"


def test_a_resumed_job_shows_its_totals_before_its_next_update(tmp_path: Path) -> None:
    save(Record(make_context(CONFIG, "learner"), tmp_path), Trainer(CONFIG, SPEC, 1), 3, 2.5)
    context = make_context(CONFIG, "learner")
    Record(context, tmp_path).resume(Trainer(CONFIG, SPEC, 2))
    shown = {name: context.registry.get_sample_value(f"headrace_learner_{name}") for name in SHOWN}
    assert shown == {"weights_version_updates": 3, "env_steps": 3, "env_frames": 3, "episode_return": 2.5}


def test_a_full_disk_costs_a_checkpoint_and_no_room_and_the_best_may_come_later(tmp_path: Path) -> None:
    record, trainer = Record(make_context(CONFIG, "learner"), tmp_path), Trainer(CONFIG, SPEC, 1)
    save(record, trainer, 1, 1.0)
    tensors = (find(tmp_path) / "model.safetensors").stat().st_size
    with (
        files_of_at_most(tensors - 1),
        pytest.raises(HeadraceError, match=r"no checkpoint after update 2: .*make room"),
    ):
        save(record, trainer, 2, 3.0)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"000000001", "latest", "best"}
    save(record, trainer, 3, 2.0)
    assert find(tmp_path, "best").name == "000000003"


@pytest.mark.parametrize("lacking", ["all", "env", "trainer", "tally", "best"])
def test_a_checkpoint_that_lacks_what_a_resume_needs_is_an_error_that_names_it(tmp_path: Path, lacking: str) -> None:
    save(Record(make_context(CONFIG, "learner"), tmp_path), Trainer(CONFIG, SPEC, 1), 1, 1.0)
    path = find(tmp_path) / "state.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({key: tree[key] for key in tree if lacking not in (key, "all")}))
    text = rf"the checkpoint {path.parent} cannot be read: it has no '\w+' \(restore it"
    resumed = Record(make_context(CONFIG, "learner"), tmp_path)
    with pytest.raises(ConfigError, match=text):
        resumed.resume(Trainer(CONFIG, SPEC, 2))
    if lacking in ("all", "tally"):
        with pytest.raises(ConfigError, match=text):
            resumed.over()


def test_a_checkpoint_of_another_environment_is_a_wrong_setting_that_no_restart_mends(tmp_path: Path) -> None:
    save(Record(make_context(CONFIG, "learner"), tmp_path), Trainer(CONFIG, SPEC, 1), 1, 1.0)
    other = Trainer(CONFIG, replace(SPEC, id="other"), 2)
    with pytest.raises(ConfigError, match=r"the checkpoint is for .*'toy'.*env-servers run .*'other'.*own env\.id"):
        Record(make_context(CONFIG, "learner"), tmp_path).resume(other)
