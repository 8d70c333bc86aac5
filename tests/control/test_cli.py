"""The command line as a user meets it: real processes, exit codes and words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jobs import PATIENCE_S

from common.config import CONFIGS, load
from common.errors import ConfigError
from common.rl.registry import ALGORITHMS
from services.control.check import check_env
from services.control.cli import _resumed

ROOT = CONFIGS.parent


def headrace(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.control.cli", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def refused(*argv: str) -> list[str]:
    """What a command that fails with exit code 2 says on stderr."""
    done = headrace(*argv)
    assert done.returncode == 2, done
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_wrong_key_is_named_with_its_value_and_the_nearest_key() -> None:
    said = refused("train", "configs/cartpole_ppo.yaml", "learner.lrr=3")
    assert said == ["error: unknown key learner.lrr=3", "remedy: did you mean learner.lr?"]


def test_a_wrong_value_is_named() -> None:
    error, remedy = refused("train", "configs/cartpole_ppo.yaml", "env.servers=none")
    assert error.startswith("error: env.servers='none': ")
    assert remedy == "remedy: see docs/configuration.md for env.servers"


def test_a_config_file_that_does_not_exist_is_named_with_the_nearest() -> None:
    said = refused("train", "configs/cartpole_pppo.yaml")
    assert said == [
        "error: no config file configs/cartpole_pppo.yaml",
        "remedy: did you mean configs/cartpole_ppo.yaml?",
    ]


def test_a_config_file_and_a_preset_exclude_each_other() -> None:
    assert refused("train", "configs/cartpole_ppo.yaml", "--algo", "ppo")[0].startswith(
        "error: configs/cartpole_ppo.yaml"
    )


def test_an_unknown_algorithm_is_named_with_the_nearest() -> None:
    said = refused("train", "--algo", "pppo", "--env", "CartPole-v1")
    assert said == ["error: --algo pppo: there is no preset", "remedy: did you mean ppo?"]


def test_an_algorithm_without_a_preset_for_such_actions_says_which_it_takes_and_who_else_has_one() -> None:
    error, remedy = refused("train", "--algo", "dqn", "--env", "Pendulum-v1")
    assert error.endswith("dqn has presets for discrete actions and images, none for continuous actions")
    assert remedy.startswith("remedy: for continuous actions use --algo a2c, appo, ddpg, ")


@pytest.mark.parametrize("targets", ["", ",", " , "])
def test_top_with_targets_that_name_none_watches_no_other_job(targets: str) -> None:
    assert refused("top", "--targets", targets)[0] == f"error: --targets {targets!r} names no host"


BROKEN = """
import gymnasium
import numpy as np


class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        DOES
"""


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("raise ValueError('no such move')", r"its step raises ValueError: no such move \(broken\.py:15\)"),
        ("return np.full(2, np.nan, np.float32), 0.0, False, False, {}", "its observation 'obs' is not finite"),
        ("return np.zeros(2, np.float32), float('inf'), False, False, {}", "its reward is not finite"),
    ],
)
def test_check_refuses_an_environment_that_cannot_be_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, said: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.replace("DOES", does))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(ConfigError, match=rf"^env\.id='broken:Broken': {said}"):
        check_env("broken:Broken", [])


@pytest.mark.parametrize(("seconds", "said"), [(0, True), (60, False)])
def test_a_resumed_run_says_if_its_ring_was_not_kept(
    seconds: int, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(CONFIGS / "cartpole_dqn.yaml", [f"replay.checkpoint_s={seconds}"], {})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    _resumed(tmp_path, None, [])
    words = "experience starts empty: with replay.checkpoint_s=0 a run keeps no ring\n"
    assert capsys.readouterr().err == (words if said else "")


def test_resume_wants_a_run(tmp_path: Path) -> None:
    assert refused("train", "--resume", str(tmp_path))[0] == f"error: --resume {tmp_path}: there is no config.yaml"


@pytest.mark.parametrize("given", ["--algo dqn", "--env Acrobot-v1"])
def test_resume_takes_no_preset(tmp_path: Path, given: str) -> None:
    (tmp_path / "config.yaml").write_text(load(None, (), {}).to_yaml())
    said = refused("train", "--resume", str(tmp_path), *given.split())
    remedy = "remedy: leave it out: a run has its own config.yaml"
    assert said == [f"error: {given} was given with --resume", remedy]


def test_bench_asks_for_its_file_before_it_measures() -> None:
    said = refused("bench", "collect", "--json", "/nope/x.json")
    assert said[0] == "error: --json /nope/x.json: there is no directory /nope"


def test_a_seed_is_no_negative_number(tmp_path: Path) -> None:
    assert "--seed" in " ".join(refused("evaluate", str(tmp_path), "--seed", "-1"))


def test_check_refuses_an_environment_that_is_not_there() -> None:
    said = refused("check", "CartPole-v99")
    assert said == ["error: env.id='CartPole-v99' is not registered", "remedy: did you mean CartPole-v1?"]


def test_check_names_the_line_at_which_an_environment_cannot_be_made() -> None:
    line = unlicensed.__code__.co_firstlineno + 1
    said = rf"'{__name__}:unlicensed': its constructor raises ValueError: no licence \(test_cli\.py:{line}\)"
    with pytest.raises(ConfigError, match=said):
        check_env(f"{__name__}:unlicensed", [])


def unlicensed() -> None:
    raise ValueError("no licence")


def test_check_shows_spec_speed_and_preset() -> None:
    done = headrace("check", "CartPole-v1")
    assert done.returncode == 0
    for part in ("CartPole-v1 will run", "obs: float32[4]", "discrete 2", "its own implementation", "vector: headrace"):
        assert part in done.stdout, part


def test_what_gymnasium_warns_of_is_a_remark_of_check_and_nothing_on_stderr() -> None:
    done = headrace("check", "CartPole-v0")
    assert "The environment CartPole-v0 is out of date" in done.stdout
    assert done.stderr == ""


def test_what_gymnasium_warns_of_is_not_raw_on_stderr_of_a_preset_either() -> None:
    assert len(refused("train", "--algo", "ppo", "--env", "CartPole-v0", "run.name=..")) == 2


def test_check_takes_no_config_file() -> None:
    said = refused("check", "configs/cartpole_ppo.yaml", "env.id=CartPole-v1")
    assert said[0] == "error: configs/cartpole_ppo.yaml is a config file"


def test_algorithms_lists_the_built_in_ones_with_what_each_is_one_line_each() -> None:
    done = headrace("algorithms")
    assert done.returncode == 0
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert lines == [[name, said] for name, (_, said) in ALGORITHMS.items()]


@pytest.mark.parametrize("command", ["train", "top", "evaluate", "plot", "check"])
def test_help_teaches_with_examples(command: str) -> None:
    done = headrace(command, "--help")
    assert done.returncode == 0
    assert f"headrace {command} " in done.stdout


def test_services_explain_themselves() -> None:
    done = headrace("env-server", "--help")
    assert done.returncode == 0
    assert "--announce" in done.stdout


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    program = (
        "import sys, services.control.cli, services.control.train, services.control.compose\n"
        "print(sorted({'torch', 'matplotlib', 'gymnasium', 'numpy', 'rich.live'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
