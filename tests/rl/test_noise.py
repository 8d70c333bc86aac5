import numpy as np
import pytest

from common.rl.noise import uniforms


def test_numbers_are_fixed_by_seed_env_step_and_component() -> None:
    expected = [[0.8019604086875916, 0.9928138852119446], [0.39731043577194214, 0.6428161263465881]]
    assert uniforms(7, (3, 2), 11, 2).tolist() == expected


def test_an_envs_noise_does_not_depend_on_who_shares_its_batch() -> None:
    together = uniforms(1, (0, 100), 5, 3)
    alone = uniforms(1, (42, 1), 5, 3)
    np.testing.assert_array_equal(together[42:43], alone)
    np.testing.assert_array_equal(uniforms(1, (0, 100), 5, 1)[:, 0], together[:, 0])


@pytest.mark.parametrize("seed", [0, -1, 2**63 + 5])
def test_numbers_lie_strictly_between_zero_and_one(seed: int) -> None:
    u = uniforms(seed, (0, 200_000), 0, 1)
    assert u.dtype == np.float32
    assert u.min() > 0.0
    assert u.max() < 1.0


def test_numbers_are_uniform() -> None:
    u = np.concatenate([uniforms(3, (0, 500), step, 2).ravel() for step in range(100)]).astype(np.float64)
    assert abs(u.mean() - 0.5) < 4 * np.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / u.size)
    counts = np.bincount((u * 100).astype(int), minlength=100)
    chi_square = ((counts - u.size / 100) ** 2 / (u.size / 100)).sum()
    assert 50 < chi_square < 160


def test_neighbouring_envs_steps_components_and_seeds_are_uncorrelated() -> None:
    u = np.stack([uniforms(5, (0, 300), step, 2) for step in range(300)]).astype(np.float64) - 0.5
    other = np.stack([uniforms(6, (0, 300), step, 2) for step in range(300)]).astype(np.float64) - 0.5
    pairs = {
        "steps": (u[1:], u[:-1]),
        "envs": (u[:, 1:], u[:, :-1]),
        "components": (u[..., 1], u[..., 0]),
        "seeds": (u, other),
    }
    for name, (a, b) in pairs.items():
        correlation = (a * b).mean() * 12
        assert abs(correlation) < 4 / np.sqrt(a.size), name
