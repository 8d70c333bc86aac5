import pytest

from services.inference_server.batcher import Batcher


def filled(max_size: int, wait_s: float, rows: list[int], alone: bool = False) -> Batcher[int]:
    batcher: Batcher[int] = Batcher(max_size, wait_s, alone)
    for item, count in enumerate(rows):
        batcher.add(item, count, now=float(item))
    return batcher


def test_nothing_is_due_while_nothing_waits() -> None:
    assert Batcher[int](8, 1.0, alone=False).due_in(5.0) is None


def test_a_batch_is_due_when_its_oldest_request_has_waited_long_enough() -> None:
    batcher = filled(100, 3.0, [1, 1])
    assert batcher.due_in(1.5) == pytest.approx(1.5)
    assert batcher.due_in(3.0) == 0.0
    assert batcher.due_in(9.0) == 0.0


def test_a_full_batch_is_due_at_once() -> None:
    batcher = filled(8, 60.0, [4, 3])
    assert batcher.due_in(1.0) == pytest.approx(59.0)
    batcher.add(2, 1, now=1.0)
    assert batcher.due_in(1.0) == 0.0


def test_what_is_left_waits_for_its_own_deadline() -> None:
    batcher = filled(4, 60.0, [2, 2, 1])
    assert batcher.take() == [0, 1]
    assert len(batcher) == 1
    assert batcher.due_in(2.0) == pytest.approx(60.0)


def test_a_batch_holds_whole_requests_in_order_and_no_more_rows_than_allowed() -> None:
    batcher = filled(8, 0.0, [3, 4, 2, 8, 1])
    assert [batcher.take() for _ in range(5)] == [[0, 1], [2], [3], [4], []]


def test_a_request_larger_than_a_batch_goes_by_itself() -> None:
    batcher = filled(8, 60.0, [20, 1])
    assert batcher.due_in(0.0) == 0.0
    assert batcher.take() == [0]
    assert batcher.take() == [1]


def test_alone_each_request_is_a_batch_and_due_at_once() -> None:
    batcher = filled(100, 60.0, [1, 1, 1], alone=True)
    assert batcher.due_in(0.0) == 0.0
    assert [batcher.take() for _ in range(3)] == [[0], [1], [2]]
    assert batcher.due_in(9.0) is None
