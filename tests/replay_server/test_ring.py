import numpy as np
import pytest

from common.config import TableConfig
from common.errors import ConfigError, ProtocolError
from common.types import Arrays
from services.replay_server.ring.table import RingTable
from services.replay_server.unroll import Drawn, Stored, Unroll

T, B = 2, 2


def arrays_of(start: int, steps: int = T, envs: int = B) -> Arrays:
    """An unroll in which environment b sees start + 10 b, then one more each step, and acts 100 more than it sees."""
    seen = start + np.arange(steps + 1)[:, None] + 10 * np.arange(envs)
    shape = (steps, envs)
    return {
        "observation.obs": np.stack([seen, -seen], axis=-1).astype(np.float32),
        "first": np.zeros((steps + 1, envs), np.bool_),
        "action": (seen[:-1] + 100).astype(np.int64),
        "reward": (seen[:-1] / 2).astype(np.float32),
        "terminated": np.zeros(shape, np.bool_),
        "truncated": np.zeros(shape, np.bool_),
        "valid": np.ones(shape, np.bool_),
        "extras.logp": -seen[:-1].astype(np.float32),
        "state.core": np.zeros((envs, 3), np.float32),
        "reward_before": np.zeros(envs, np.float32),
        "versions": np.zeros(steps, np.int64),
        "episode_returns": np.zeros(0, np.float32),
        "episode_lengths": np.zeros(0, np.int32),
    }


def with_final(arrays: Arrays, t: int, b: int, value: float, ended: str = "truncated") -> Arrays:
    """Ends environment b's episode at step t, where it truly saw `value` last."""
    envs = arrays["reward"].shape[1]
    index = arrays.get("final_index", np.zeros(0, np.int32))
    final = arrays.get("final.obs", np.zeros((0, 2), np.float32))
    arrays[ended][t, b] = True
    arrays["final_index"] = np.append(index, np.int32(t * envs + b))
    arrays["final.obs"] = np.append(final, np.array([[value, -value]], np.float32), axis=0)
    return arrays


def make(capacity: int = 8, **limits: float) -> RingTable:
    config = TableConfig.model_validate({"kind": "uniform", "capacity": capacity, **limits})
    return RingTable("ring", config, T, largest_insert=T * B, largest_sample=4, seed=7)


def put(table: RingTable, number: int, arrays: Arrays, slot: str = "env-0/0", life: int = 1) -> list[Stored | Drawn]:
    unroll = Unroll(slot, life, number, 0, arrays)
    table.check(unroll)
    table.insert(unroll, number)
    return table.poll(0.0)


def draw(table: RingTable, n: int) -> Arrays:
    table.sample(n, 0, "draw")
    (answer,) = table.poll(0.0)
    assert isinstance(answer, Drawn)
    assert answer.arrays is not None
    return answer.arrays


def transitions(drawn: Arrays) -> dict[float, tuple[float, int, float, float]]:
    """Each transition drawn, under what was observed: (next observation, action, reward, discount)."""
    columns = (drawn[name] for name in ("action", "reward", "discount"))
    rows = zip(drawn["observation.obs"][:, 0], drawn["next_observation.obs"][:, 0], *columns, strict=True)
    return {float(o): (float(o2), int(a), float(r), float(d)) for o, o2, a, r, d in rows}


def test_a_draw_that_fails_is_not_forgotten_but_fails_again() -> None:
    table = make()
    table.sample(10**15, 0, "more than memory")
    for _ in range(2):
        with pytest.raises(MemoryError):
            put(table, 1, arrays_of(1))
        assert list(table.reasons()) == [("more than memory", "no item can be drawn")]
        assert table.samples == 0


def test_a_drawn_transition_is_one_step_of_one_environment() -> None:
    table = make()
    assert put(table, 1, arrays_of(1)) == [Stored(1, 0)]
    drawn = draw(table, 100)
    assert transitions(drawn) == {
        1.0: (2.0, 101, 0.5, 1.0),
        2.0: (3.0, 102, 1.0, 1.0),
        11.0: (12.0, 111, 5.5, 1.0),
        12.0: (13.0, 112, 6.0, 1.0),
    }
    assert set(drawn) == {
        *("observation.obs", "next_observation.obs", "action", "reward", "discount"),
        *("extras.logp", "keys", "probabilities"),
    }
    assert drawn["observation.obs"].shape == (100, 2)
    np.testing.assert_array_equal(drawn["extras.logp"], -drawn["observation.obs"][:, 0])
    np.testing.assert_array_equal(drawn["next_observation.obs"][:, 1], -drawn["next_observation.obs"][:, 0])
    np.testing.assert_array_equal(drawn["probabilities"], np.full(100, 0.25))
    assert drawn["keys"].dtype == np.int64
    assert table.size == table.inserts == 4
    assert table.samples == 100


def test_an_ended_episode_leads_to_its_true_last_observation() -> None:
    table = make()
    arrays = with_final(with_final(arrays_of(1), 1, 0, 70.0), 0, 1, 80.0, ended="terminated")
    put(table, 1, arrays)
    assert transitions(draw(table, 100)) == {
        1.0: (2.0, 101, 0.5, 1.0),
        2.0: (70.0, 102, 1.0, 1.0),
        11.0: (80.0, 111, 5.5, 0.0),
        12.0: (13.0, 112, 6.0, 1.0),
    }


def test_steps_that_are_not_valid_are_never_drawn() -> None:
    table = make()
    arrays = with_final(arrays_of(1), 0, 0, 70.0)
    arrays["valid"][1, 0] = arrays["valid"][0, 1] = False
    put(table, 1, arrays)
    drawn = draw(table, 100)
    assert transitions(drawn) == {1.0: (70.0, 101, 0.5, 1.0), 12.0: (13.0, 112, 6.0, 1.0)}
    np.testing.assert_array_equal(drawn["probabilities"], np.full(100, 0.5))
    assert table.size == table.inserts == 2


def test_a_last_observation_of_a_step_that_is_not_valid_is_not_kept() -> None:
    table = make()
    put(table, 1, arrays_of(1))
    before = table.nbytes
    skipped = with_final(with_final(arrays_of(21), 0, 0, 70.0), 1, 0, 80.0)
    skipped["valid"][:] = False
    put(table, 2, skipped)
    assert sorted(transitions(draw(table, 200))) == [1.0, 2.0, 11.0, 12.0]
    # Both unrolls hold one newest observation a column, of which the first two are free again.
    assert table.nbytes == before + 2 * (2 * 4 + 4)


def test_the_oldest_columns_are_overwritten_with_their_last_observations() -> None:
    table = make()
    put(table, 1, with_final(arrays_of(1), 0, 0, 70.0))
    put(table, 2, with_final(arrays_of(21), 1, 1, 80.0))
    full = table.nbytes
    assert transitions(draw(table, 200))[1.0][0] == 70.0
    put(table, 3, arrays_of(41))
    drawn = transitions(draw(table, 200))
    assert sorted(drawn) == [21.0, 22.0, 31.0, 32.0, 41.0, 42.0, 51.0, 52.0]
    assert drawn[41.0] == (42.0, 141, 20.5, 1.0)
    assert drawn[32.0] == (80.0, 132, 16.0, 1.0)
    for number in range(4, 40):
        put(table, number, with_final(arrays_of(100 * number), number % 2, 0, 10_000.0 + number))
        drawn = transitions(draw(table, 200))
        assert drawn[100.0 * number + number % 2][0] == 10_000.0 + number
    assert table.nbytes == full
    assert table.size == 8


def test_a_slot_written_again_gives_other_keys() -> None:
    table = make(capacity=4)
    keys: set[int] = set()
    for number in range(1, 6):
        put(table, number, arrays_of(20 * number))
        new = set(draw(table, 200)["keys"].tolist())
        assert len(new) == 4
        assert not new & keys
        keys |= new


def test_draws_are_uniform_over_valid_steps_after_the_ring_has_wrapped() -> None:
    table = make(capacity=24)
    for number in range(1, 10):
        arrays = arrays_of(20 * number)
        arrays["valid"][number % 2, 0] = False
        put(table, number, arrays)
    assert table.size == 18
    _, counts = np.unique(draw(table, 18_000)["keys"], return_counts=True)
    assert len(counts) == 18
    # The 0.999 quantile of chi-square with 17 degrees of freedom.
    assert float(((counts - 1000.0) ** 2 / 1000.0).sum()) < 40.79


def test_the_same_seed_draws_the_same_transitions() -> None:
    one, other = make(), make()
    for table in (one, other):
        put(table, 1, arrays_of(1))
    np.testing.assert_array_equal(draw(one, 50)["keys"], draw(other, 50)["keys"])


def test_an_unroll_inserted_twice_is_answered_and_stored_once() -> None:
    table = make()
    put(table, 5, arrays_of(1))
    assert put(table, 5, arrays_of(1)) == [Stored(5, 0)]
    assert put(table, 4, arrays_of(1)) == [Stored(4, 0)]
    assert table.size == table.inserts == 4
    put(table, 5, arrays_of(21), life=2)
    put(table, 5, arrays_of(41), slot="env-0/1")
    assert table.inserts == 12


def test_a_draw_waits_for_min_size_and_says_so() -> None:
    table = make(min_size=5)
    table.sample(4, 0, "draw")
    assert table.poll(0.0) == []
    assert put(table, 1, arrays_of(1)) == [Stored(1, 0)]
    assert list(table.reasons()) == [("draw", "4 of min_size=5 steps")]
    stored, drawn = put(table, 2, arrays_of(21))
    assert stored == Stored(2, 0)
    assert isinstance(drawn, Drawn)
    assert drawn.token == "draw"
    assert not list(table.reasons())


def test_inserts_wait_in_order_until_draws_catch_up() -> None:
    table = make(min_size=4, samples_per_insert=1.0, error_buffer=4.0)
    for number in range(1, 5):
        unroll = Unroll("env-0/0", 1, number, 0, arrays_of(20 * number))
        table.check(unroll)
        table.insert(unroll, number)
    assert table.poll(10.0) == [Stored(1, 0), Stored(2, 0)]
    assert table.parked == 2
    reason = (
        "0 items drawn of 8 steps (samples_per_insert=1, error_buffer=4, min_size=4) is as far as draws may fall behind"
    )
    assert list(table.reasons()) == [(3, reason), (4, reason)]
    table.sample(4, 0, "draw")
    drawn, stored = table.poll(12.5)
    assert isinstance(drawn, Drawn)
    assert stored == Stored(3, 0)
    assert table.blocked_seconds == {"insert": 2.5, "sample": 0.0}
    table.poll(13.0)
    assert table.blocked_seconds == {"insert": 3.0, "sample": 0.0}
    assert table.finish() == []
    assert table.parked == 0


def test_draws_wait_for_inserts_and_the_time_is_counted() -> None:
    table = make(min_size=4, samples_per_insert=1.0, error_buffer=4.0)
    put(table, 1, arrays_of(1))
    draw(table, 4)
    table.sample(3, 0, "next")
    table.poll(5.0)
    assert dict(table.reasons())["next"] == (
        "4 items drawn of 4 steps (samples_per_insert=1, error_buffer=4, min_size=4) is as far as draws may run ahead"
    )
    table.poll(6.0)
    table.insert(Unroll("env-0/0", 1, 2, 0, arrays_of(21)), 2)
    stored, drawn = table.poll(6.5)
    assert stored == Stored(2, 0)
    assert isinstance(drawn, Drawn)
    assert table.blocked_seconds == {"insert": 0.0, "sample": 1.5}


def test_the_draws_of_a_learner_that_is_gone_are_dropped() -> None:
    table = make()
    table.sample(4, 0, "draw")
    table.learner_gone()
    assert put(table, 1, arrays_of(1)) == [Stored(1, 0)]
    assert table.samples == 0


def test_what_is_stored_does_not_change_with_the_message_it_came_in() -> None:
    table = make()
    arrays = with_final(arrays_of(1), 0, 0, 70.0)
    put(table, 1, arrays)
    for array in arrays.values():
        array.fill(0)
    assert transitions(draw(table, 100))[1.0] == (70.0, 101, 0.5, 1.0)


def test_an_unroll_unlike_the_first_is_refused_naming_both() -> None:
    table = make()
    put(table, 1, arrays_of(1))
    other = arrays_of(21)
    other["observation.obs"] = other["observation.obs"].astype(np.float64)
    with pytest.raises(ProtocolError) as caught:
        put(table, 1, other, slot="env-1/0")
    assert str(caught.value).startswith(
        "env-1/0 sends observation.obs as <f8 (2,), table 'ring' holds it as <f4 (2,) from env-0/0"
    )
    missing = arrays_of(21)
    del missing["extras.logp"]
    with pytest.raises(ProtocolError, match=r"env-1/0 sends extras\.logp as nothing"):
        put(table, 1, missing, slot="env-1/0")
    assert table.parked == 0
    put(table, 1, with_final(arrays_of(21, envs=3), 0, 0, 70.0), slot="env-1/0")
    assert table.size == 8


def test_an_unroll_that_does_not_fit_is_refused() -> None:
    table = make()
    with pytest.raises(ProtocolError, match="unrolls of 3 steps, table 'ring' has chunks of 2"):
        put(table, 1, arrays_of(1, steps=3))
    put(table, 1, arrays_of(1))
    with pytest.raises(ConfigError, match=r"replay\.tables\.ring\.capacity=8 cannot hold .*set it to at least 10"):
        put(table, 2, arrays_of(1, envs=5))
    with pytest.raises(ProtocolError, match="two last observations of one step"):
        put(table, 2, with_final(with_final(arrays_of(1), 0, 0, 70.0), 0, 0, 70.0))
    coupled = make(samples_per_insert=1.0, error_buffer=4.0)
    with pytest.raises(ConfigError, match="an unroll of 6 steps"):
        put(coupled, 1, arrays_of(1, envs=3))
    with pytest.raises(ConfigError, match="5 items are asked"):
        coupled.sample(5, 0, "draw")
    with pytest.raises(ProtocolError, match="a Sample of 0 items"):
        coupled.sample(0, 0, "draw")


def test_last_observations_take_memory_only_as_they_come() -> None:
    table = make(capacity=4000)
    put(table, 1, arrays_of(1))
    before = table.nbytes
    row = 2 * 4 + 4
    for number in range(2, 7):
        put(table, number, with_final(arrays_of(20 * number), 0, 0, 70.0))
    assert before + 5 * row <= table.nbytes <= before + 10 * row


def test_inserts_go_on_until_an_item_is_complete_whatever_the_limiter_says() -> None:
    table = make(capacity=80, n_step=5, discount=0.5, samples_per_insert=1.0, error_buffer=4.0)
    for number in range(1, 4):
        assert put(table, number, arrays_of(20 * number)) == [Stored(number, 0)]
        if number < 3:
            assert table.size == 0
    assert table.size == 4
    assert put(table, 4, arrays_of(80)) == []
    for answered in ([Drawn], [Drawn], [Drawn, Stored]):
        table.sample(4, 0, "draw")
        assert [type(answer) for answer in table.poll(0.0)] == answered


def prioritized(**settings: float) -> RingTable:
    return make(kind="prioritized", **settings)


def test_priorities_decide_how_often_an_item_is_drawn() -> None:
    table = prioritized(alpha=0.5)
    put(table, 1, arrays_of(1))
    drawn = draw(table, 400)
    by_seen = dict(zip(drawn["observation.obs"][:, 0].tolist(), drawn["keys"].tolist(), strict=True))
    keys = np.array([by_seen[seen] for seen in (1.0, 2.0, 11.0, 12.0)])
    table.update({"keys": keys, "priorities": np.array([1.0, 4.0, 9.0, 16.0], np.float32)})
    drawn = draw(table, 1000)
    assert table.mass == 10.0
    for seen, share in ((1.0, 0.1), (2.0, 0.2), (11.0, 0.3), (12.0, 0.4)):
        chosen = drawn["observation.obs"][:, 0] == seen
        # Strata of equal mass leave less than one draw at each edge to chance.
        assert abs(np.count_nonzero(chosen) - 1000 * share) <= 2
        np.testing.assert_allclose(drawn["probabilities"][chosen], share)
    put(table, 2, arrays_of(21))
    assert table.mass == 10.0 + 4 * 4.0


def test_priorities_of_items_overwritten_meanwhile_are_ignored_and_counted() -> None:
    table = prioritized(capacity=4)
    put(table, 1, arrays_of(1))
    old = draw(table, 40)["keys"]
    put(table, 2, arrays_of(21))
    table.update({"keys": old, "priorities": np.full(40, 99.0)})
    table.poll(0.0)
    assert table.stale == 40
    assert table.mass == 4.0
    fresh = draw(table, 40)["keys"]
    table.update({"keys": np.append(fresh[:1], [-5, 1 << 60]), "priorities": np.array([0.0, 9.0, 9.0])})
    table.poll(0.0)
    assert table.stale == 42
    assert 3.0 < table.mass < 3.001


def test_a_key_that_names_no_item_makes_none_of_it() -> None:
    table = prioritized()
    arrays = arrays_of(1)
    arrays["valid"][0, 0] = False
    put(table, 1, arrays)
    table.update({"keys": np.array([0]), "priorities": np.array([9.0])})
    assert sorted(transitions(draw(table, 100))) == [2.0, 11.0, 12.0]
    assert table.stale == 1


@pytest.mark.parametrize(
    ("keys", "priorities", "message"),
    [
        ([0], [float("nan")], "not all finite"),
        ([0], [-1.0], "at least 0"),
        ([0, 1], [1.0], "priorities without keys"),
        ([0.5], [1.0], "priorities without keys"),
        ([[0]], [[1.0]], "priorities without keys"),
    ],
)
def test_priorities_that_cannot_be_meant_are_refused(keys: list[int], priorities: list[float], message: str) -> None:
    table = prioritized()
    put(table, 1, arrays_of(1))
    with pytest.raises(ProtocolError, match=message):
        table.update({"keys": np.array(keys), "priorities": np.array(priorities)})
    with pytest.raises(ProtocolError, match="table 'ring' has no priorities"):
        make().update({"keys": np.array([0]), "priorities": np.array([1.0])})
    assert table.mass == 4.0


def test_a_table_that_is_full_takes_no_more_memory() -> None:
    table = prioritized(capacity=40, n_step=3, discount=0.9)
    sizes = set()
    for number in range(1, 200):
        put(table, number, with_final(arrays_of(20 * number), number % 2, 0, 70.0))
        if number > 20:
            sizes.add(table.nbytes)
            table.update({"keys": draw(table, 4)["keys"], "priorities": np.full(4, 2.0)})
    assert len(sizes) == 1
