"""From a config to processes with addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.config import Config, load
from common.errors import ConfigError
from services.control.compose import local_plan, overlay_of, place


def test_local_plan_gives_each_service_a_process_and_an_ipc_address(tmp_path: Path) -> None:
    config = load(None, ["env.servers=2", "inference.servers=2", "learner.threads=2"], {})
    (tmp_path / "run").mkdir()
    # The second life of this run's learner is to come: its env-servers' seeds must not be those of the first.
    (tmp_path / "run" / "ordinal").write_text("1")
    plan = local_plan(config, tmp_path / "run", tmp_path)
    assert [process.name for process in plan.processes] == [
        "learner",
        "inference-0",
        "inference-1",
        "env-0",
        "env-1",
        "replay-0",
    ]
    assert [process.threads for process in plan.processes] == [2, 1, 1, 1, 1, 1]
    assert plan.processes[4].argv == (
        *("-m", "services.env_server", "--config", str(tmp_path / "config.yaml"), "--index", "1"),
        *("--run-dir", str(tmp_path / "run"), "--announce", str(tmp_path / "env-1.url")),
        *("--earlier-lives", "100"),
    )
    net = load(tmp_path / "config.yaml", (), {}).net
    assert net.act == (f"ipc://{tmp_path}/act-0", f"ipc://{tmp_path}/act-1")
    assert net.experience == (f"ipc://{tmp_path}/experience-0",)
    assert net.weights == f"ipc://{tmp_path}/weights"


def test_addresses_that_the_user_chose_stay() -> None:
    config = load(None, ["net.weights=tcp://127.0.0.1:6000"], {})
    placed = place(config, lambda name: f"inproc://{name}")
    assert placed.net.weights == "tcp://127.0.0.1:6000"
    assert placed.net.act == ("inproc://act-0",)


def test_too_few_addresses_for_the_inference_servers_are_refused() -> None:
    config = load(None, ["net.act=[tcp://127.0.0.1:6000]", "inference.servers=2"], {})
    with pytest.raises(ConfigError, match=r"net\.act names 1 addresses for inference\.servers=2"):
        place(config, str)


def test_a_fixed_metrics_port_counts_up_over_the_processes(tmp_path: Path) -> None:
    plan = local_plan(load(None, ["metrics.port=9100"], {}), tmp_path, tmp_path)
    assert [process.argv[-1] for process in plan.processes] == [f"metrics.port={9100 + i}" for i in range(4)]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("net.weights=somewhere", "net address 'somewhere' is none"),
        ("net.act=[tcp://10.0.0.1:5701]", "would carry unencrypted tcp off this machine"),
        ("metrics.port=65533", r"metrics\.port=65533: 4 processes take it .* \(set it to 65532 or less"),
    ],
)
def test_an_address_or_port_that_a_service_would_refuse_is_refused_first(
    tmp_path: Path, setting: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        local_plan(load(None, [setting], {}), tmp_path, tmp_path)
    local_plan(load(None, ["metrics.port=65532"], {}), tmp_path, tmp_path)


def test_overlay_names_what_differs_and_nothing_else() -> None:
    config = load(None, ["learner.lr=0.5", "algorithm.clip=0.1"], {})
    overlay = overlay_of(config, Config())
    assert overlay == {"learner": {"lr": 0.5}, "algorithm": {"clip": 0.1}}
    assert yaml.safe_load(yaml.safe_dump(overlay)) == overlay
    base = load(None, ["env.kwargs={size: 9}"], {})
    assert overlay_of(Config(), base) == {"env": {"kwargs": {}}}
