"""Fresh episodes with a given policy."""

from __future__ import annotations

import json
import re
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import Job
from rich.console import Console

from common.config import CONFIGS, EnvConfig, load
from common.errors import ConfigError
from common.rl.policy import build_policy
from common.service import make_context
from services.control import evaluate
from services.control.evaluate import Evaluation, Player, check_video, evaluate_run, play, quotas, write_video
from services.env_server.backends import make_backend
from services.learner_server.record import Record
from services.learner_server.trainer import Trainer

COUNTDOWN = """
import itertools
import gymnasium
import numpy as np

made = itertools.count(1)


class Countdown(gymnasium.Env):
    '''The nth one made ends its episodes after n steps, each worth 1.'''

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.length = next(made)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.ones(2, np.float32), 1.0, self.left == 0, False, {}
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def player(env_id: str, num_envs: int, seed: int = 5, **network: object) -> Player:
    backend = make_backend(EnvConfig(id=env_id), num_envs)
    policy = build_policy({"name": "mlp", "hidden": [8], **network}, backend.spec, 1)
    return Player(policy, backend, seed)


def test_quotas_share_the_episodes_out() -> None:
    assert quotas(7, 7).tolist() == [1] * 7
    assert quotas(70, 32).tolist() == [3] * 6 + [2] * 26
    assert quotas(2, 3).tolist() == [1, 1, 0]


def test_long_episodes_count_as_often_as_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "countdown_env.py").write_text(COUNTDOWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    told: list[tuple[int, int]] = []
    evaluation = play(player("countdown_env:Countdown", 3), np.array([2, 2, 2]), lambda *so_far: told.append(so_far))
    assert sorted(evaluation.returns.tolist()) == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert sorted(evaluation.lengths.tolist()) == [1, 1, 2, 2, 3, 3]
    assert told[:2] == [(1, 3), (3, 6)]
    assert told[-1][0] == 6


@pytest.mark.parametrize("network", [{}, {"lstm": 4, "last_action": True}], ids=["mlp", "lstm"])
def test_steps_that_only_reset_are_not_counted(network: dict[str, Any]) -> None:
    evaluation = play(player("CartPole-v1", 4, **network), np.full(4, 3), lambda *_: None)
    assert len(evaluation.returns) == 12
    assert evaluation.returns.tolist() == evaluation.lengths.tolist()


def test_the_same_seed_plays_the_same_episodes_and_another_does_not() -> None:
    first, second, other = (
        play(player("Pendulum-v1", 2, seed), np.array([1, 1]), lambda *_: None) for seed in (5, 5, 6)
    )
    assert first.returns.tolist() == second.returns.tolist()
    assert first.returns.tolist() != other.returns.tolist()


@pytest.mark.parametrize("terminal", [False, True])
def test_long_episodes_show_that_they_go_on(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LINE_S", 0.0)
    out = StringIO()
    with evaluate.progress(Console(file=out, force_terminal=terminal, width=100), 4) as played:
        played(0, 1500)
        played(1, 3000)
    said = out.getvalue()
    assert all(f"{steps} steps" in said for steps in (("3k",) if terminal else ("1.5k", "3k")))
    assert ("1/4" if terminal else "evaluating: 1 of 4 episodes") in said


def test_report_gives_mean_and_population_std() -> None:
    report = Evaluation(np.array([1.0, 3.0]), np.array([10, 20])).report()
    assert report == {
        "episodes": 2,
        "mean": 2.0,
        "std": 1.0,
        "min": 1.0,
        "max": 3.0,
        "mean_length": 15.0,
        "returns": [1.0, 3.0],
    }


def test_video_is_an_mp4_of_one_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    config = load("configs/cartpole_ppo.yaml", (), {})
    backend = make_backend(config.env, 1)
    policy = build_policy(config.network, backend.spec, 1)
    steps = write_video(policy, config, tmp_path / "video.mp4", 5)
    assert steps > 5
    assert (tmp_path / "video.mp4").read_bytes()[4:8] == b"ftyp"


def test_an_environment_that_draws_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blank_env.py").write_text(
        COUNTDOWN.replace("def __init__(self)", "def __init__(self, render_mode=None)")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load(None, ["env.id=blank_env:Countdown"], {})
    with pytest.raises(ConfigError, match=r"--video: env\.id='blank_env:Countdown' draws no pictures"):
        check_video(config)


def test_a_package_that_drawing_needs_is_named_before_the_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ConfigError, match=r"draws no pictures here: pygame is not installed"):
        check_video(load("configs/cartpole_ppo.yaml", (), {}))


def test_an_evaluation_that_cannot_be_kept_was_said_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(None, ["network.hidden=[4]"], {})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    spec = make_backend(config.env, 1).spec
    Record(make_context(config, "learner"), tmp_path).save(Trainer(config, spec, 1))
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot take evaluation\.json: .*Is a directory .*copy the run"):
        evaluate_run(tmp_path, episodes=2, video=False, seed=1, checkpoint="latest")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert re.search(r"over 2 episodes .*\(checkpoint 000000000\)$", said[0])


async def test_several_agents_are_trained_and_evaluated(tmp_path: Path) -> None:
    overrides = ["env.envs=6", "rollout.unroll=25", "algorithm.epochs=1", "stop.steps=600"]
    with Job(CONFIGS / "spread_ppo.yaml", tmp_path / "run", overrides) as job:
        assert await job.ended() == 0, job.text()
    # Eight columns are wanted, and three agents make nine.
    evaluate_run(job.run_dir, episodes=8, video=False, seed=1, checkpoint="latest")
    evaluation = json.loads((job.run_dir / "evaluation.json").read_text())
    assert (evaluation["episodes"], evaluation["mean_length"]) == (8, 25.0)
