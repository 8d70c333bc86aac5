from __future__ import annotations

import json
import math

import numpy as np

from common.config import StopConfig
from common.types import Arrays
from services.learner_server.tally import Tally


def news(counters: list[list[int]], episodes: list[tuple[float, int, int, int]] | None = None) -> Arrays:
    """What a Batch tells: counters (life, number, steps, frames) and episodes (return, length, life, number)."""
    rows = np.array(episodes or [], np.float64).reshape(-1, 4)
    return {
        "counters": np.array(counters, np.int64).reshape(-1, 4),
        "episode_returns": rows[:, 0].astype(np.float32),
        "episode_lengths": rows[:, 1].astype(np.int32),
        "episode_origins": rows[:, 2:].astype(np.int64),
    }


def test_totals_are_those_of_the_streams_whatever_is_repeated_or_comes_late() -> None:
    tally = Tally(StopConfig())
    tally.merge(news([[7, 1, 10, 40], [8, 2, 25, 100]]))
    tally.merge(news([[7, 3, 30, 120]]))
    tally.merge(news([[7, 1, 10, 40], [7, 3, 30, 120], [8, 2, 25, 100]]))
    assert (tally.steps, tally.frames) == (55, 220)


def test_an_episode_told_by_two_replay_servers_is_counted_once() -> None:
    tally = Tally(StopConfig(episodes=10))
    assert tally.merge(news([[7, 1, 10, 10]], [(4.0, 5, 7, 1)])) == 1
    # The next replay-server was sent unroll 1 again, and 2.
    assert tally.merge(news([[7, 2, 20, 20]], [(4.0, 5, 7, 1), (8.0, 9, 7, 2)])) == 1
    assert tally.episodes == 2
    assert tally.episode_return == 6.0
    assert tally.episode_length == 7.0


def test_an_episode_counts_whichever_of_a_draws_two_tables_answers_first() -> None:
    later, earlier = news([[7, 6, 60, 60]], [(8.0, 9, 7, 6)]), news([[7, 5, 50, 50]], [(4.0, 5, 7, 5), (2.0, 3, 7, 5)])
    for parts in ((later, earlier), (earlier, later)):
        tally = Tally(StopConfig(episodes=10))
        assert tally.merge(*parts) == 3
        assert (tally.steps, tally.episodes, tally.episode_length) == (60, 3, 17 / 3)
    # The second table's replay-server was restarted in between, and told again.
    assert Tally(StopConfig()).merge(earlier, later, earlier) == 3


def test_the_mean_is_over_the_last_episodes_and_unknown_before_the_first() -> None:
    tally = Tally(StopConfig(episodes=2))
    assert math.isnan(tally.episode_return)
    tally.merge(news([[7, 1, 9, 9]], [(1.0, 1, 7, 1), (3.0, 1, 7, 1), (5.0, 1, 7, 1)]))
    assert tally.episode_return == 4.0


def test_an_unroll_is_trained_on_once_whoever_hands_it_out_again() -> None:
    tally = Tally(StopConfig())
    first, second = {"a": np.zeros(1)}, {"a": np.ones(1)}
    assert tally.untrained(np.array([[7, 1], [8, 4]]), [first, second]) == [first, second]
    assert tally.untrained(np.array([[7, 1], [8, 5]]), [first, second]) == [second]
    resumed = Tally(StopConfig())
    resumed.load_state_dict(json.loads(json.dumps(tally.state_dict())))
    assert resumed.untrained(np.array([[7, 1], [7, 2]]), [first, second]) == [second]


def test_the_goal_needs_all_its_episodes() -> None:
    tally = Tally(StopConfig(episode_return=3.0, episodes=2))
    tally.merge(news([[7, 1, 5, 5]], [(9.0, 5, 7, 1)]))
    assert tally.outcome() is None
    tally.merge(news([[7, 2, 6, 6]], [(-3.0, 1, 7, 2)]))
    assert tally.outcome() == "solved"


def test_each_limit_stops_and_the_furthest_one_is_the_progress() -> None:
    for stop, outcome in ((StopConfig(steps=100), "steps"), (StopConfig(frames=400), "frames")):
        tally = Tally(stop)
        tally.merge(news([[7, 1, 99, 399]]))
        assert tally.outcome() is None
        tally.merge(news([[7, 2, 100, 400]]))
        assert tally.outcome() == outcome
    tally = Tally(StopConfig(steps=100, frames=1000, seconds=50.0))
    tally.merge(news([[7, 1, 20, 300]]))
    tally.seconds = 5.0
    assert tally.progress() == 0.3
    tally.seconds = 50.0
    assert (tally.progress(), tally.outcome()) == (1.0, "seconds")


def test_what_is_saved_as_json_comes_back_whole() -> None:
    tally = Tally(StopConfig(episodes=3))
    tally.merge(news([[1 << 61, 4, 40, 160]], [(2.5, 7, 1 << 61, 4)]))
    tally.trained_steps, tally.seconds = 32, 1.5
    other = Tally(StopConfig(episodes=3))
    other.load_state_dict(json.loads(json.dumps(tally.state_dict())))
    assert other.state_dict() == tally.state_dict()
    other.merge(news([[1 << 61, 4, 40, 160]], [(2.5, 7, 1 << 61, 4)]))
    assert (other.steps, other.episodes) == (40, 1)
