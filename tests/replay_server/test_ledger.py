import numpy as np

from common.types import Arrays
from services.replay_server.ledger import Ledger


def episodes(*returns: float) -> Arrays:
    lengths = np.arange(1, len(returns) + 1, dtype=np.int32)
    return {"episode_returns": np.array(returns, np.float32), "episode_lengths": lengths}


def test_a_report_tells_the_totals_of_the_streams_that_changed() -> None:
    ledger = Ledger()
    ledger.record("a", 22, (1, 8, 32), episodes(3.0))
    ledger.record("a", 11, (1, 6, 24), episodes())
    ledger.record("a", 22, (2, 16, 64), episodes(4.0, 5.0))
    report = ledger.report()
    assert report["counters"].tolist() == [[11, 1, 6, 24], [22, 2, 16, 64]]
    assert report["episode_returns"].tolist() == [3.0, 4.0, 5.0]
    assert report["episode_lengths"].tolist() == [1, 1, 2]
    assert report["episode_origins"].tolist() == [[22, 1], [22, 2], [22, 2]]
    ledger.record("a", 11, (2, 12, 48), episodes())
    assert ledger.report()["counters"].tolist() == [[11, 2, 12, 48]]


def test_the_order_of_episodes_does_not_depend_on_which_group_was_faster() -> None:
    both, more = (1, 8, 8), (2, 16, 16)
    unrolls = [("a", 7, both, episodes(1.0)), ("b", 3, both, episodes(2.0)), ("a", 7, more, episodes(3.0))]
    for order in ((0, 1, 2), (1, 0, 2), (0, 2, 1)):
        ledger = Ledger()
        for i in order:
            ledger.record(*unrolls[i])
        assert ledger.report()["episode_returns"].tolist() == [1.0, 2.0, 3.0]


def test_a_report_without_news_is_of_the_same_kinds() -> None:
    report = Ledger().report()
    assert {name: (array.dtype.str, array.shape) for name, array in report.items()} == {
        "counters": ("<i8", (0, 4)),
        "episode_returns": ("<f4", (0,)),
        "episode_lengths": ("<i4", (0,)),
        "episode_origins": ("<i8", (0, 2)),
    }


def test_an_unroll_that_comes_again_or_late_counts_nothing() -> None:
    ledger = Ledger()
    ledger.record("a", 1, (2, 20, 20), episodes(1.0))
    ledger.record("a", 1, (2, 20, 20), episodes(1.0))
    ledger.record("a", 1, (1, 10, 10), episodes(9.0))
    report = ledger.report()
    assert report["counters"].tolist() == [[1, 2, 20, 20]]
    assert report["episode_returns"].tolist() == [1.0]


def test_a_new_learner_is_told_all_totals_and_no_episode_twice() -> None:
    ledger = Ledger()
    ledger.record("a", 1, (1, 10, 10), episodes(1.0))
    ledger.record("a", 2, (3, 30, 30), episodes())
    ledger.report()
    ledger.repeat_all()
    report = ledger.report()
    assert report["counters"].tolist() == [[1, 1, 10, 10], [2, 3, 30, 30]]
    assert report["episode_returns"].tolist() == []


def test_what_is_kept_of_an_unroll_does_not_hold_its_message() -> None:
    arrays = episodes(1.0, 2.0)
    ledger = Ledger()
    ledger.record("a", 1, (1, 10, 10), arrays)
    arrays["episode_returns"][:] = 0.0
    arrays["episode_lengths"][:] = 0
    report = ledger.report()
    assert report["episode_returns"].tolist() == [1.0, 2.0]
    assert report["episode_lengths"].tolist() == [1, 2]
