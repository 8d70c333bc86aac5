import subprocess
import sys

import pytest
from jobs import PATIENCE_S

from common.errors import ConfigError
from common.rl.registry import ALGORITHMS, algorithm_class


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_each_name_loads_the_class_of_that_name(name: str) -> None:
    assert algorithm_class(name).__name__.lower() == name
    assert ALGORITHMS[name][1]


def test_a_path_loads_a_class_of_ones_own() -> None:
    assert algorithm_class("common.rl.algorithms.ppo:PPO") is algorithm_class("ppo")


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'pp0'.*did you mean ppo\?"):
        algorithm_class("pp0")


def test_a_path_that_leads_nowhere_is_named() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.name: 'no_such_package:Thing'"):
        algorithm_class("no_such_package:Thing")


def test_no_algorithm_is_imported_before_it_is_asked_for() -> None:
    program = "import sys, common.rl.registry; print([m for m in sys.modules if m == 'torch' or 'algorithms' in m])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.strip() == "[]"
