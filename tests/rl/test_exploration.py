import numpy as np
import pytest
import torch

from common.rl.exploration import EpsilonConfig, acting_epsilon, acting_scalars, epsilon_at, epsilon_of, explored
from common.rl.noise import uniforms

FIRST, LAST = 2.0**-24, 1.0 - 2.0**-24


def test_epsilon_falls_linearly_over_steps_and_stays() -> None:
    config = EpsilonConfig(start=1.0, end=0.5, steps=100)
    assert [epsilon_at(config, steps, 0.0) for steps in (0, 50, 100, 1000)] == [1.0, 0.75, 0.5, 0.5]


def test_without_steps_it_falls_over_a_share_of_the_job() -> None:
    config = EpsilonConfig(start=1.0, end=0.0, share=0.5)
    assert [epsilon_at(config, 10**6, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, 0.0]


def test_each_environment_keeps_an_epsilon_of_its_own() -> None:
    # 0.4, and its powers 1 + 7/2 and 8; the fourth of three begins again
    config = EpsilonConfig(actors=3)
    assert epsilon_of(torch.arange(4), config).tolist() == pytest.approx([0.4, 0.4**4.5, 0.4**8, 0.4])
    assert epsilon_of(torch.zeros(1, dtype=torch.int64), EpsilonConfig(actors=1)).tolist() == pytest.approx([0.4])


def test_the_coin_decides_and_the_second_column_chooses() -> None:
    best = torch.tensor([2, 2, 2, 2])
    noise = torch.tensor([[0.3, FIRST], [0.3, LAST], [0.09, FIRST], [0.09, LAST]])
    assert explored(best, 3, 0.1, noise).tolist() == [2, 2, 0, 2]
    assert explored(best, 4, torch.tensor([0.5, 0.0, 0.5, 0.5]), noise).tolist() == [0, 2, 0, 3]


def test_the_largest_uniform_never_chooses_beyond_the_last_action() -> None:
    noise = torch.tensor([[FIRST, LAST]])
    chosen = [explored(torch.zeros(1, dtype=torch.int64), n, 1.0, noise).item() for n in range(1, 300)]
    assert chosen == list(range(299))


def test_random_actions_come_as_often_as_epsilon_says_and_are_all_alike() -> None:
    noise = torch.from_numpy(uniforms(3, (0, 40000), 7, 2))
    counts = np.bincount(explored(torch.full((40000,), 1), 4, 0.4, noise).numpy(), minlength=4) / 40000
    np.testing.assert_allclose(counts, [0.1, 0.7, 0.1, 0.1], atol=0.006)


def test_all_is_random_until_the_first_update() -> None:
    config, env = EpsilonConfig(end=0.0, steps=10), torch.arange(2)
    assert acting_epsilon(config, env, {}) == 1.0
    assert acting_epsilon(config, env, acting_scalars(config, 5000, 0.0, updates=0)) == 1.0
    assert acting_epsilon(config, env, acting_scalars(config, 5, 0.0, updates=1)) == 0.5


def test_environments_with_their_own_epsilon_need_no_schedule() -> None:
    config = EpsilonConfig(actors=2, base=0.5, alpha=1.0)
    assert acting_scalars(config, 5, 0.0, updates=1) == {"uniform": 0.0}
    assert torch.equal(
        torch.as_tensor(acting_epsilon(config, torch.arange(2), {"uniform": 0.0})), torch.tensor([0.5, 0.25])
    )
