from pathlib import Path

import pytest

from common.arguments import service_arguments
from common.config import MAX_ENVS
from common.errors import ConfigError


def test_arguments_of_a_service(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("env: {envs: 3}")
    line = [
        "--config",
        str(path),
        "--index",
        "2",
        "--restarts",
        "1",
        "--run-dir",
        "r",
        "--announce",
        "a",
        "env.groups=4",
    ]
    arguments = service_arguments("env", line)
    assert (arguments.config.env.envs, arguments.config.env.groups) == (3, 4)
    assert (arguments.index, arguments.restarts, arguments.name) == (2, 1, "")
    assert (arguments.run_dir, arguments.announce) == (Path("r"), Path("a"))


def test_env_servers_by_hand_differ_and_the_others_are_number_0() -> None:
    first, second = service_arguments("env", []), service_arguments("env", [])
    assert first.index != second.index
    assert first.index >= 1 << 20
    large = service_arguments("env", ["env.envs=1048576", "env.groups=4"])
    assert 1 << 20 <= large.index <= (MAX_ENVS >> 22) - 1  # so that its last environment's number is still one
    assert first.name.startswith("env-")
    assert service_arguments("replay", []).index == 0
    assert service_arguments("replay", []).name == ""


def test_inference_servers_by_hand_are_number_0_under_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for host in ("first", "second"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        arguments = service_arguments("inference", [])
        assert arguments.index == 0
        names.add(arguments.name)
    assert len(names) == 2
    assert service_arguments("inference", ["--index=0"]).name == ""


@pytest.mark.parametrize("argument", ["--index=-1", "--index=9999999999999", "--restarts=-1", "--earlier-lives=-1"])
def test_a_service_counts_from_0(argument: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{argument.replace('=', ' ')} is out of range \(set it between 0 and \d+\)"
    ):
        service_arguments("env", [argument])


@pytest.mark.parametrize(("role", "key"), [("inference", "act"), ("replay", "experience")])
def test_a_service_without_an_address_of_its_own_is_refused(role: str, key: str) -> None:
    two = f"net.{key}=[tcp://127.0.0.1:1, tcp://127.0.0.1:2]"
    assert service_arguments(role, ["--index=1", two]).index == 1
    text = rf"--index 2: net\.{key} has 2 addresses, counted from 0 \(set it below 2\)"
    with pytest.raises(ConfigError, match=text):
        service_arguments(role, ["--index=2", two])
    # Of one address each host may have its own.
    assert service_arguments(role, ["--index=2"]).index == 2
    assert service_arguments("env", ["--index=2", two]).index == 2


def test_wrong_arguments_of_a_service_are_said_by_argparse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        service_arguments("env", ["--conf", "x"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        service_arguments("replay", ["--help"])
    assert caught.value.code == 0
    assert "headrace replay-server --config configs/cartpole_ppo.yaml" in capsys.readouterr().out
