import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config import Config, known_keys, load, merge, nest, validate
from common.errors import ConfigError, nearest


def overlay(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


def test_each_source_is_laid_over_the_one_before(tmp_path: Path) -> None:
    path = overlay(tmp_path, {"learner": {"lr": 0.1, "batch": 0}, "env": {"envs": 3, "groups": 5}, "run": {"seed": 2}})
    environ = {"HEADRACE_LEARNER__LR": "0.2", "HEADRACE_ENV__ENVS": "4", "OTHER_RUN__SEED": "9"}
    config = load(path, ["learner.lr=0.3"], environ)
    assert config.learner.lr == 0.3
    assert config.env.envs == 4
    assert config.env.groups == 5
    assert config.run.seed == 2
    assert config.env.id == "CartPole-v1"
    assert load(path, (), {}).learner.lr == 0.1


def test_the_environment_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_STOP__EPISODE_RETURN", "475")
    assert load().stop.episode_return == 475.0


def test_sections_merge_and_lists_replace(tmp_path: Path) -> None:
    tables = {"a": {"capacity": 7}, "experience": {"capacity": 9}}
    config = load(overlay(tmp_path, {"replay": {"tables": tables}}), ["replay.tables.a.kind=uniform"], {})
    assert {name: (table.kind, table.capacity) for name, table in config.replay.tables.items()} == {
        "a": ("uniform", 7),
        "experience": ("fifo", 9),
    }
    tree = {"a": {"b": 1, "c": [1, 2]}}
    merge(tree, {"a": {"c": [3]}})
    assert tree == {"a": {"b": 1, "c": [3]}}


def test_an_empty_mapping_empties_what_it_is_laid_over(tmp_path: Path) -> None:
    path = overlay(tmp_path, {"env": {"envs": 3, "kwargs": {"size": 9}}})
    emptied = load(path, ["env.kwargs={}"], {})
    assert (emptied.env.kwargs, emptied.env.envs) == ({}, 3)
    assert load(path, ["env.kwargs={}", "env.kwargs.seed=1"], {}).env.kwargs == {"seed": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("-2E+3", -2000.0),
        ("1.5e3", 1500.0),
        ("7", 7),
        ("true", True),
        ("[32, 16]", [32, 16]),
        ("{a: 1e-3}", {"a": 1e-3}),
        ("'1e3'", "1e3"),
        ("nan", "nan"),
        ("infinity", "infinity"),
        ("1e", "1e"),
        ("null", None),
    ],
)
def test_an_override_is_yaml_in_which_exponents_are_numbers(text: str, value: Any) -> None:
    assert nest("algorithm.x", text, "override") == {"algorithm": {"x": value}}
    parsed = nest("algorithm.x", text, "override")["algorithm"]["x"]
    assert type(parsed) is type(value)


def test_numbers_with_exponents_are_numbers_in_files_and_whole_ones_do_for_counts(tmp_path: Path) -> None:
    config = load(overlay(tmp_path, "learner:\n  lr: 3e-4\nstop:\n  steps: 1e6\nalgorithm: {clip: 1e-1}\n"), (), {})
    assert (config.learner.lr, config.stop.steps, config.algorithm["clip"]) == (3e-4, 1_000_000, 0.1)


WRONG = [
    (["learner.lrr=1"], r"unknown key learner\.lrr=1 \(did you mean learner\.lr\?\)"),
    (["lerner.lr=1"], r"unknown key lerner=\{'lr': 1\}"),
    (["seed=3"], r"unknown key seed=3 \(did you mean run\.seed\?\)"),
    (["replay.tables.experience.capacty=3"], r"unknown key replay.*capacty=3 \(did you mean replay\.tables\.<name>\.c"),
    (["env.envs=0"], r"env\.envs=0: Input should be greater than or equal to 1"),
    (["env.envs=many"], r"env\.envs='many': Input should be a valid integer"),
    (["env.envs=2.5"], r"env\.envs=2\.5"),
    (["learner.lr=.inf"], r"learner\.lr=inf: Input should be a finite number"),
    (["learner.lr=.nan"], r"learner\.lr=nan"),
    (["learner=3"], r"learner=3: Input should be a valid dictionary"),
    (["learner.optimizer=sgd"], r"learner\.optimizer='sgd': Input should be 'adam' or 'rmsprop'"),
    (["net.experience=[]"], r"net\.experience=\[\]"),
    (["learner.lr"], r"override 'learner\.lr' is not key=value"),
    (["learner.lr="], r"override 'learner\.lr=' is not key=value"),
    (["=3"], r"override '=3' is not key=value"),
    (["learner.lr=[1,"], r"override 'learner\.lr=\[1,': '\[1,' is not YAML"),
    (["run.name=2026-13-01"], r"override 'run\.name=2026-13-01': '2026-13-01' is not YAML \(quote it\)"),
    *(
        (
            [f"run.name={name}"],
            rf"run\.name='{re.escape(name)}' is no name of a directory \(leave slashes out: run\.dir",
        )
        for name in ("../x", "/x", "x/", "a/b", ".", "..")
    ),
    (['run.name="a\\0"'], r"run\.name='a\\x00' is no name of a directory"),
    (["env.kwargs={size: 3, size: 4}"], r"override 'env\.kwargs={size: 3, size: 4}': .* is not YAML"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_a_wrong_override_names_key_value_and_remedy(overrides: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(None, overrides, {})
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_wrong_key_is_named_wherever_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key env\.group=2 \(did you mean env\.groups\?\)"):
        load(overlay(tmp_path, {"env": {"group": 2}}), (), {})
    with pytest.raises(ConfigError, match=r"unknown key env\.group=2 \(did you mean env\.groups\?\)"):
        load(None, (), {"HEADRACE_ENV__GROUP": "2"})
    with pytest.raises(ConfigError, match=r"environment variable HEADRACE_ENV__GROUPS: '\{' is not YAML"):
        load(None, (), {"HEADRACE_ENV__GROUPS": "{"})


def test_a_key_like_none_gets_the_list_of_keys() -> None:
    assert nearest("zzz", ["learner.lr", "env.id"]) == "known: learner.lr, env.id"
    assert "replay.tables.<name>.capacity" in known_keys()
    assert "learner.checkpoint.keep" in known_keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds list, not a mapping"),
        ("a: [1\n", "is not YAML"),
        ("run: {name: 2026-13-01}\n", "is not YAML: month must be in"),
        ("a: &x [*x]\n", r"is not YAML: found unconstructable recursive node\n.* line 1, column 4"),
        ("env: {kwargs: &x {a: *x}}\n", r"is not YAML: found unconstructable recursive node\n.* line 1, column 15"),
        ("[" * 5000, "is not YAML: maximum recursion depth"),
        ("env: {groups: 1}\nenv: {envs: 2}\n", r"is not YAML: key 'env' comes twice\n.* line 2, column 1"),
        ("env:\n  envs: 1\n  envs: 2\n", r"is not YAML: key 'envs' comes twice\n.* line 3, column 3"),
        ("learner:\n", "learner=None"),
        ("1: 2\n", "1"),
    ],
)
def test_a_file_that_is_no_overlay_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(overlay(tmp_path, text), (), {})


def test_a_key_that_takes_over_a_merged_one_comes_once(tmp_path: Path) -> None:
    text = "run: &run {seed: 2, dir: there}\nenv: {kwargs: {<<: *run, seed: 3}}\n"
    (tmp_path / "job.yaml").write_text(text)
    assert load(tmp_path / "job.yaml", (), {}).env.kwargs == {"seed": 3, "dir": "there"}


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    overlay(tmp_path, {})
    with pytest.raises(ConfigError, match=r"no config file .*jobs\.yaml \(did you mean .*job\.yaml\?\)"):
        load(tmp_path / "jobs.yaml", (), {})
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path, (), {})
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(tmp_path / "binary.yaml", (), {})


UNIFORM = {"kind": "uniform", "capacity": 100}
DEADLOCKS: list[tuple[dict[str, Any], str]] = [
    (
        {"rollout": {"tables": ["other"]}},
        r"rollout\.tables names table 'other', which replay\.tables does not have",
    ),
    ({"learner": {"table": "other"}}, r"learner\.table names table 'other'"),
    ({"learner": {"batch": 4}}, r"learner\.batch=4 has no meaning at replay\.max_policy_lag=0"),
    ({"replay": {"max_policy_lag": 4}}, r"learner\.batch=0 is no number of unrolls to draw .* of 64"),
    (
        {"replay": {"max_policy_lag": 4}, "learner": {"batch": 65}},
        r"learner\.batch=65 is no number of unrolls.*set learner\.batch between 1 and 64",
    ),
    ({"replay": {"tables": {"experience": UNIFORM}}}, r"learner\.batch=0 is no number of transitions"),
    (
        {"replay": {"tables": {"experience": UNIFORM}}, "learner": {"batch": 101}},
        r"learner\.batch=101 is no number of transitions.*set learner\.batch between 1 and 100",
    ),
    (
        {"replay": {"tables": {"experience": {}, "ring": {**UNIFORM, "samples_per_insert": 2.0}}}},
        r"replay\.tables\.ring\.samples_per_insert=2\.0 would deadlock: nobody draws",
    ),
    (
        {"replay": {"tables": {"experience": {}, "ring": UNIFORM}}, "rollout": {"tables": ["ring"]}},
        r"learner\.table=experience would deadlock: rollout\.tables=\['ring'\] lack it",
    ),
    (
        {"replay": {"tables": {"experience": {}, "b": {}}}, "rollout": {"tables": ["experience", "b"]}},
        r"rollout\.tables names fifo table 'b', which would deadlock: nobody draws from it",
    ),
    (
        {"replay": {"max_policy_lag": 4}, "learner": {"batch": 4, "per_request": 2}},
        r"learner\.per_request=2: a fifo table has nothing to draw.*set it to 1",
    ),
    ({"learner": {"per_request": 2}}, r"learner\.per_request=2: a fifo table has nothing to draw.*set it to 1"),
    (
        {"replay": {"servers": 5, "max_policy_lag": 4}, "env": {"servers": 2}, "learner": {"batch": 4}},
        r"replay\.servers=5 would deadlock: 4 groups send to as many.*set it to 4, or env\.groups to 3",
    ),
    (
        {"inference": {"hold_back": 1}},
        r"inference\.hold_back=1: at replay\.max_policy_lag=0 acting waits for each.*set it to 0, or replay",
    ),
    (
        {"inference": {"hold_back": 50}, "replay": {"max_policy_lag": 67}, "learner": {"batch": 4}},
        r"inference\.hold_back=50 would deadlock at replay\.max_policy_lag=67.*set replay\.max_policy_lag to 68",
    ),
]


@pytest.mark.parametrize(("tree", "message"), DEADLOCKS)
def test_settings_that_would_deadlock_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(tree)
    assert caught.value.remedy


def test_settings_just_this_side_of_a_deadlock_are_taken() -> None:
    validate({"replay": {"max_policy_lag": 4}, "learner": {"batch": 64}})
    validate({"replay": {"servers": 4, "max_policy_lag": 4}, "env": {"servers": 2}, "learner": {"batch": 4}})
    validate({"replay": {"tables": {"experience": UNIFORM}}, "learner": {"batch": 100}})
    tables = {"experience": {}, "ring": UNIFORM}
    validate({"replay": {"tables": tables}, "rollout": {"tables": ["experience", "ring"]}})
    validate({"inference": {"hold_back": 50}, "replay": {"max_policy_lag": 68}, "learner": {"batch": 4}})
    # A ring has no bound on the age of what it hands out.
    validate({"inference": {"hold_back": 50}, "replay": {"tables": {"experience": UNIFORM}}, "learner": {"batch": 9}})


def test_a_config_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.learner.lr = 0.1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.learner = config.learner  # type: ignore[misc]


TEXT = st.text(st.characters(categories=["L", "N", "P", "Z"]), max_size=8) | st.sampled_from(
    ["1e3", "nan", ".inf", "null", "true", "0x10", "12_3", "2024-01-01", "1:30", "~", "", "'", "- a", "-1E+5", "no"]
)
FINITE = st.floats(1e-12, 1e12)


@settings(max_examples=80, deadline=None)
@given(TEXT, FINITE, st.dictionaries(TEXT, FINITE | TEXT | st.booleans() | st.lists(TEXT, max_size=2), max_size=3))
def test_what_is_written_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, name: str, number: float, opaque: dict[str, Any]
) -> None:
    tree = {"run": {"dir": name}, "learner": {"lr": number}, "algorithm": opaque, "env": {"kwargs": opaque}}
    config = validate(tree)
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(config.to_yaml())
    # The defaults of an opaque section lie under it, unless it is empty: what a run did not name is theirs.
    algorithm = {"name": "ppo", **opaque} if opaque else {}
    assert load(path, (), {}) == config.model_copy(update={"algorithm": algorithm, "network": {"name": "mlp"}})


def test_arguments_of_an_environment_come_back_as_whatever_yaml_made_of_them(tmp_path: Path) -> None:
    kwargs = "{since: 2024-01-01, at: 2024-01-01 12:30:00Z, text: '2024-01-01', names: !!set {a}, low: {1: [-.inf, 2]}}"
    config = load(None, [f"env.kwargs={kwargs}"], {})
    assert config.env.kwargs["since"] == date(2024, 1, 1)
    assert load(overlay(tmp_path, config.to_yaml()), (), {}) == config


def test_a_linear_schedule_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner\.lr_schedule=linear has no end to fall to.*stop\.steps"):
        load(None, ["learner.lr_schedule=linear"], {})
    assert load(None, ["learner.lr_schedule=linear", "stop.seconds=9"], {}).learner.lr_schedule == "linear"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"min_size": 100}, r"experience\.min_size=100 does nothing in a table of kind fifo"),
        ({"her": {"k": 4}}, r"experience\.her=k=4 strategy='future' does nothing in a table of kind fifo"),
        ({"kind": "uniform", "alpha": 0.5}, r"experience\.alpha=0\.5 does nothing in a table of kind uniform"),
        ({"kind": "uniform", "burn_in": 8}, r"experience\.burn_in=8 does nothing in a table of kind uniform"),
        ({"kind": "uniform", "period": 8}, r"experience\.period=8 does nothing in a table of kind uniform"),
        (
            {"kind": "prioritized", "sequence": 8, "period": 8, "reward_clip": 1.0},
            r"experience\.reward_clip=1\.0 does nothing in a table of kind prioritized of sequences",
        ),
        ({"kind": "unrolls", "n_step": 3}, r"experience\.n_step=3 does nothing in a table of kind unrolls"),
    ],
)
def test_a_setting_that_its_table_does_not_look_at_is_refused(table: dict[str, Any], said: str) -> None:
    tables = {"experience": {"capacity": 1000, **table}}
    with pytest.raises(ConfigError, match=said + r".*leave it out"):
        validate({"replay": {"tables": tables}, "learner": {"batch": 8 if table.get("kind") else 0}})
