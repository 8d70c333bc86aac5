"""The benchmark of ten million draws, shortened."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.draws import Stream, crossings, distances, measure, tail


def test_draws_follow_priorities_that_change_and_no_item_crosses_a_boundary() -> None:
    found = measure(100_000, capacity=4_000)
    # The ring was full before the first draw.
    assert (found.inserted, found.drawn) == (104_000, 100_200)
    assert found.crossed == 0
    assert found.stale > 0
    assert found.lives > 8
    first, last = found.resident
    assert last - first < 4 * 2**20
    for name, chi_square, g, freedom in found.statistics:
        assert tail(chi_square, freedom) > 1e-4, name
        assert tail(g, freedom) > 1e-4, name
    # Strata lower the count of places; draws by priority are as good as independent.
    assert tail(*found.statistics[1][1::2]) < 1 - 1e-4  # type: ignore[arg-type]


def test_the_tail_of_chi_square_is_the_tables() -> None:
    for statistic, freedom, p in ((30.144, 19, 0.05), (40.79, 17, 0.001), (149.449, 100, 0.001), (100.0, 100, 0.4812)):
        assert tail(statistic, freedom) == pytest.approx(p, rel=0.05)


def test_both_statistics_on_literals() -> None:
    chi_square, g = distances(np.array([6.0, 0.0, 4.0]), np.array([5.0, 1.0, 4.0]))
    assert chi_square == pytest.approx(0.2 + 1.0)
    assert g == pytest.approx(2 * 6 * np.log(1.2))


def test_an_item_across_an_episode_an_environment_or_a_life_is_found_out() -> None:
    unroll, _ = Stream(7).unroll("env-0/0", np.random.default_rng(0))
    seen = unroll.arrays["observation.obs"][0, 0]
    assert seen.tolist() == [7, 0, 0, 0]
    right = {
        "observation.obs": seen[None],
        "next_observation.obs": np.array([[7, 0, 0, 2]]),
        "reward": np.array([1.5]),
        "discount": np.array([0.25]),
    }
    assert crossings(right) == 0
    for after in ([8, 0, 0, 2], [7, 1, 0, 2], [7, 0, 1, 2], [7, 0, 0, 4], [7, 0, 0, 1]):
        assert crossings(right | {"next_observation.obs": np.array([after])}) == 1
