import gymnasium
import numpy as np
import pytest

from common.config import EnvConfig
from common.errors import ConfigError
from services.env_server.backends import make_backend
from services.env_server.backends.partial import make


def test_only_the_entries_that_are_kept_are_seen() -> None:
    partial, whole = make("CartPole-v1", [0, 2]), gymnasium.make("CartPole-v1")
    seen, all_of_it = partial.reset(seed=3)[0], whole.reset(seed=3)[0]
    for action in (0, 1, 1, 0):
        np.testing.assert_array_equal(seen, all_of_it[[0, 2]])
        assert partial.observation_space.contains(seen)
        seen, all_of_it = partial.step(action)[0], whole.step(action)[0]


def test_a_job_finds_it_by_its_path() -> None:
    config = EnvConfig(id="services.env_server.backends.partial:make", kwargs={"id": "CartPole-v1", "keep": [0, 2]})
    backend = make_backend(config, 2)
    assert [spec.shape for spec in backend.spec.observations] == [(2,)]
    backend.close()


@pytest.mark.parametrize("keep", [[], [4], [-1]])
def test_an_entry_that_is_not_there_is_named(keep: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"env\.kwargs\.keep.*0 to 3"):
        make("CartPole-v1", keep)


def test_an_observation_that_is_not_flat_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env\.kwargs\.id"):
        make("Blackjack-v1", [0])
