from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ProtocolError
from services.replay_server.fifo import FifoTable
from services.replay_server.unroll import Drawn, Stored, Unroll

DEADLINE_S = 10.0


def unroll(slot: str = "a", number: int = 1, *versions: int, life: int = 1, first_env: int = 0) -> Unroll:
    steps = np.array(versions or (0,), np.int64)
    arrays = {"versions": steps, "reward": np.zeros((len(steps), 1), np.float32)}
    return Unroll(slot, life, number, first_env, arrays)


def synchronous(*slots: str) -> FifoTable:
    table = FifoTable(4, 0, DEADLINE_S)
    for slot in slots:
        table.join(slot, 1)
    return table


def batch(answers: list[Any]) -> list[str]:
    """Gives the slots of the one batch among `answers`."""
    (drawn,) = [answer for answer in answers if isinstance(answer, Drawn)]
    return [unroll.slot for unroll in drawn.unrolls]


def test_a_synchronous_batch_is_one_unroll_of_each_group_in_the_order_of_their_environments() -> None:
    table = synchronous("a", "b", "c")
    table.sample(0, 7, "sample")
    first, second, third = (unroll(slot, 1, 7, first_env=env) for slot, env in (("a", 16), ("b", 0), ("c", 8)))
    assert table.insert(first, "A")
    assert table.poll(0.0) == []
    assert table.insert(third, "C")
    assert table.poll(1.0) == []
    assert table.insert(second, "B")
    assert table.poll(2.0) == [Drawn("sample", (second, third, first))]


def test_synchronous_inserts_are_answered_with_the_version_of_the_sample_after_the_one_that_took_them() -> None:
    table = synchronous("a", "b")
    table.sample(0, 7, "seventh")
    table.insert(unroll("a", 1, 7), "A")
    table.insert(unroll("b", 1, 7), "B")
    assert len(table.poll(0.0)) == 1
    assert table.poll(1.0) == []
    table.sample(0, 8, "eighth")
    assert table.poll(2.0) == [Stored("A", 8), Stored("B", 8)]


def test_unrolls_that_come_before_the_learner_wait_for_it() -> None:
    table = synchronous("a")
    table.insert(unroll("a", 1, 3), "A")
    assert table.poll(100.0) == []
    table.sample(0, 3, "sample")
    assert batch(table.poll(200.0)) == ["a"]


def test_a_group_that_never_joined_is_waited_for_once_it_has_sent_an_unroll() -> None:
    table = synchronous("a")
    table.sample(0, 0, "first")
    table.insert(unroll("a", 1, 0), "A")
    table.insert(unroll("b", 1, 0), "B")
    assert batch(table.poll(0.0)) == ["a", "b"]
    table.sample(0, 1, "second")
    table.insert(unroll("a", 2, 1), "A2")
    assert table.poll(1.0) == [Stored("A", 1), Stored("B", 1)]


def test_a_batch_goes_without_a_group_that_is_later_than_the_deadline_and_names_it() -> None:
    table = synchronous("a", "b")
    table.sample(0, 0, "sample")
    assert table.poll(50.0) == []  # nobody's time runs while there is nothing to train on
    mine = unroll("a", 1, 0)
    table.insert(mine, "A")
    assert table.poll(100.0) == []
    assert table.poll(109.9) == []
    assert table.poll(110.0) == [Drawn("sample", (mine,), missing=("b",))]


def test_a_group_that_was_gone_without_is_no_longer_waited_for_and_its_late_unroll_is_discarded() -> None:
    table = synchronous("a", "b")
    table.sample(0, 0, "first")
    table.insert(unroll("a", 1, 0), "A1")
    table.poll(0.0)
    table.poll(10.0)
    table.sample(0, 1, "second")
    table.insert(unroll("a", 2, 1), "A2")
    answers = table.poll(10.1)
    assert (answers[0], batch(answers)) == (Stored("A1", 1), ["a"])
    table.insert(unroll("b", 1, 0), "B1")
    table.sample(0, 2, "third")
    assert table.poll(10.2) == [Stored("A2", 2), Stored("B1", 2)]
    assert table.discarded == 1
    # It is back: the batch waits for it again.
    table.insert(unroll("a", 3, 2), "A3")
    assert table.poll(10.3) == []
    table.insert(unroll("b", 2, 2), "B2")
    assert batch(table.poll(10.4)) == ["a", "b"]


def test_a_new_life_of_a_slot_takes_the_place_of_the_old_one() -> None:
    table = synchronous("a", "b")
    table.sample(0, 0, "sample")
    table.insert(unroll("a", 5, 0, life=1), "old")
    table.insert(unroll("b", 1, 0), "B")
    table.join("a", 2)
    (drawn,) = table.poll(0.0) or table.poll(10.0)
    assert isinstance(drawn, Drawn)
    assert drawn.missing == ("a",)
    table.sample(0, 1, "next")
    table.insert(unroll("a", 1, 1, life=2), "new")
    table.insert(unroll("b", 2, 1), "B2")
    assert batch(table.poll(11.0)) == ["a", "b"]


def test_the_old_life_of_a_slot_does_not_stand_in_for_the_new_one() -> None:
    table = synchronous("a", "b")
    table.sample(0, 0, "sample")
    table.insert(unroll("a", 5, 0, life=1), "old")
    table.join("a", 2)
    table.insert(unroll("b", 1, 0), "B")
    assert table.poll(0.0) == []
    table.insert(unroll("a", 1, 0, life=2), "new")
    assert batch(table.poll(1.0)) == ["a", "a", "b"]


def test_a_batch_goes_back_to_the_table_when_its_learner_is_gone() -> None:
    table = synchronous("a", "b")
    table.sample(0, 4, "lost")
    table.insert(unroll("a", 1, 4), "A")
    table.insert(unroll("b", 1, 4), "B")
    assert batch(table.poll(0.0)) == ["a", "b"]
    table.learner_gone()
    assert table.size == 2
    table.sample(0, 4, "again")
    assert batch(table.poll(1.0)) == ["a", "b"]


def test_what_an_earlier_life_of_the_learner_asked_for_is_stale_for_the_next() -> None:
    first_life, second_life = 1 << 40, 2 << 40
    table = synchronous("a")
    table.sample(0, first_life + 900, "lost")
    table.insert(unroll("a", 1, first_life + 900), "A")
    assert batch(table.poll(0.0)) == ["a"]
    table.learner_gone()
    table.sample(0, second_life + 800, "after an older checkpoint")
    assert table.poll(1.0) == [Stored("A", second_life + 800)]
    assert table.discarded == 1


def test_the_oldest_step_decides_whether_an_unroll_is_stale() -> None:
    table = FifoTable(4, 2, DEADLINE_S)
    table.insert(unroll("a", 1, 9, 8, 7), "old")
    young = unroll("a", 2, 9, 9, 8)
    table.insert(young, "young")
    assert table.poll(0.0) == [Stored("old", 0), Stored("young", 0)]
    table.sample(1, 10, "sample")
    assert table.poll(1.0) == [Drawn("sample", (young,))]
    assert table.discarded == 1


def test_an_insert_is_answered_when_there_is_room() -> None:
    table = FifoTable(2, 5, DEADLINE_S)
    assert [table.insert(unroll("a", n), n) for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert table.poll(0.0) == [Stored(1, 0), Stored(2, 0)]
    assert (table.size, table.parked) == (2, 2)
    table.sample(2, 0, "sample")
    answers = table.poll(1.0)
    assert isinstance(answers[0], Drawn)
    assert [unroll.number for unroll in answers[0].unrolls] == [1, 2]
    assert answers[1:] == [Stored(3, 0), Stored(4, 0)]


def test_a_sample_waits_for_as_many_as_it_asks_for() -> None:
    table = FifoTable(4, 5, DEADLINE_S)
    table.sample(2, 0, "sample")
    table.insert(unroll("a", 1), 1)
    assert table.poll(0.0) == [Stored(1, 0)]
    assert list(table.reasons()) == [("sample", "1 of 2 unrolls are here")]
    table.insert(unroll("a", 2), 2)
    assert batch(table.poll(1.0)) == ["a", "a"]
    assert list(table.reasons()) == []


def test_a_table_full_of_stale_unrolls_makes_room_for_those_that_wait() -> None:
    table = FifoTable(2, 1, DEADLINE_S)
    for n, version in enumerate((0, 0, 5, 5)):
        table.insert(unroll("a", n, version), n)
    table.sample(2, 5, "sample")
    answers = table.poll(0.0)
    assert [answer.token for answer in answers if isinstance(answer, Stored)] == [0, 1, 2, 3]
    assert batch(answers) == ["a", "a"]
    assert table.discarded == 2


@pytest.mark.parametrize("n", [-1, 0, 5])
def test_a_sample_that_could_never_be_answered_is_refused(n: int) -> None:
    table = FifoTable(4, 1, DEADLINE_S)
    with pytest.raises(ProtocolError, match=f"a Sample of {n} unrolls.*ask for 1 to 4"):
        table.sample(n, 0, "sample")


def test_waiting_requests_say_what_they_wait_for() -> None:
    table = FifoTable(1, 1, DEADLINE_S)
    table.insert(unroll("a", 1), "stored")
    table.insert(unroll("a", 2), "parked")
    assert list(table.reasons()) == [("parked", "the table is full (1 unrolls): the learner is behind")]
    meeting = synchronous("a", "b")
    meeting.insert(unroll("a", 1), "A")
    meeting.sample(0, 0, "sample")
    assert dict(meeting.reasons())["sample"] == "waits for unrolls of b"
    assert dict(meeting.reasons())["A"] == "the learner has not asked for the next batch"
    assert dict(synchronous().reasons()) == {}


def test_unrolls_of_another_length_than_the_first_one_inserted_are_refused() -> None:
    table = FifoTable(2, 1, DEADLINE_S)
    # What another table refuses is never inserted.
    table.check(unroll("d", 1, 0))
    table.check(unroll("a", 1, 0, 0, 0))
    table.insert(unroll("a", 1, 0, 0, 0), "A")
    table.check(unroll("b", 1, 0, 0, 0))
    with pytest.raises(ProtocolError, match="c sends unrolls of 2 steps, the table holds unrolls of 3"):
        table.check(unroll("c", 1, 0, 0))


def test_a_finished_table_answers_what_is_stored_and_forgets_it() -> None:
    table = synchronous("a", "b")
    table.sample(0, 0, "sample")
    table.insert(unroll("a", 1), "A")
    table.insert(unroll("b", 1), "B")
    assert len(table.poll(0.0)) == 1
    table.insert(unroll("a", 2), "A2")
    assert table.finish() == [Stored("A", 0), Stored("B", 0), Stored("A2", 0)]
    assert (table.size, table.nbytes) == (0, 0)
    asynchronous = FifoTable(1, 1, DEADLINE_S)
    asynchronous.insert(unroll("a", 1), "stored")
    asynchronous.insert(unroll("a", 2), "parked")
    assert asynchronous.finish() == [Stored("stored", 0)]


def test_time_is_counted_for_the_side_that_waits() -> None:
    table = FifoTable(1, 1, DEADLINE_S)
    table.sample(1, 0, "sample")
    table.poll(10.0)
    table.insert(unroll("a", 1), 1)
    table.poll(13.0)
    table.insert(unroll("a", 2), 2)
    table.insert(unroll("a", 3), 3)
    table.poll(14.0)
    table.poll(16.0)
    assert table.blocked_seconds == {"sample": 3.0, "insert": 2.0}


def test_bytes_are_those_of_all_unrolls_held() -> None:
    table = FifoTable(1, 1, DEADLINE_S)
    for n in (1, 2, 3):
        table.insert(unroll("a", n), n)
    table.poll(0.0)
    table.sample(1, 0, "sample")
    table.poll(1.0)
    assert table.nbytes == 3 * (8 + 4)


OPERATIONS = st.lists(
    st.tuples(st.just("insert"), st.integers(0, 5))
    | st.tuples(st.just("sample"), st.integers(1, 3))
    | st.tuples(st.just("gone"), st.just(0)),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, st.integers(3, 5), st.integers(1, 3), st.data())
def test_whatever_happens_the_lag_is_bounded_the_order_kept_and_nothing_lost_or_handed_out_twice(
    operations: list[tuple[str, int]], capacity: int, lag: int, data: st.DataObject
) -> None:
    table = FifoTable(capacity, lag, DEADLINE_S)
    stored: list[int] = []
    trained: list[int] = []
    kept: list[int] = []
    inserted = version = 0
    asked = False
    for operation, number in operations:
        if operation == "insert":
            table.insert(unroll("a", inserted, max(0, version - number)), inserted)
            inserted += 1
        elif operation == "sample" and not asked:
            version += data.draw(st.integers(0, 2))
            table.sample(number, version, number)
            trained, kept, asked = trained + kept, [], True
        elif operation == "gone":
            table.learner_gone()
            kept, asked = [], False
        for answer in table.poll(0.0):
            if isinstance(answer, Stored):
                stored.append(answer.token)
                continue
            assert len(answer.unrolls) == answer.token
            assert min(int(u.arrays["versions"].min()) for u in answer.unrolls) >= version - lag
            kept, asked = [u.number for u in answer.unrolls], False
        assert table.size <= capacity + len(kept) + 3
        assert stored == list(range(len(stored)))
        assert trained + kept == sorted({*trained, *kept})
        assert len(trained) + len(kept) + table.size + table.parked + table.discarded == inserted
        assert len(stored) + table.parked == inserted
