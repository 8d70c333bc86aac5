"""What rings hand out, against literals and against what truly happened in random streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from streams import Step, World

from common.config import TableConfig
from common.errors import ConfigError, ProtocolError
from common.rl.goals import Goals
from common.rl.replayed import to_transitions
from common.rl.stacks import stacked
from common.types import Arrays
from services.replay_server.ring.items import n_step
from services.replay_server.ring.table import RingTable
from services.replay_server.unroll import Drawn, Unroll


def table_of(unroll: int, capacity: int, seed: int = 0, **settings: object) -> RingTable:
    config = TableConfig.model_validate({"kind": "uniform", "capacity": capacity, **settings})
    return RingTable("ring", config, unroll, largest_insert=1, largest_sample=1, seed=seed)


def put(table: RingTable, unroll: Unroll) -> None:
    table.check(unroll)
    table.insert(unroll, "insert")
    table.poll(0.0)


def draw(table: RingTable, n: int) -> Arrays:
    table.sample(n, 0, "draw")
    (answer,) = table.poll(0.0)
    assert isinstance(answer, Drawn)
    assert answer.arrays is not None
    return answer.arrays


def line(rewards: list[float], number: int = 1, life: int = 1, **ends: list[int]) -> Unroll:
    """One environment, which sees 10 * number + t and ends where `terminated`, `truncated` (with a last observation of
    900 + t) or `first` say so."""
    steps = len(rewards)
    arrays: Arrays = {
        "observation.obs": (10.0 * number + np.arange(steps + 1))[:, None, None],
        "first": np.zeros((steps + 1, 1), np.bool_),
        "action": np.zeros((steps, 1), np.int64),
        "reward": np.array(rewards, np.float32)[:, None],
        **{name: np.zeros((steps, 1), np.bool_) for name in ("terminated", "truncated")},
        "valid": np.ones((steps, 1), np.bool_),
        "versions": np.zeros(steps, np.int64),
    }
    for name, times in ends.items():
        arrays[name][times] = True
    if ends.get("truncated"):
        arrays["final_index"] = np.array(ends["truncated"], np.int32)
        arrays["final.obs"] = 900.0 + arrays["final_index"][:, None]
        arrays["first"][np.array(ends["truncated"]) + 1] = True
    return Unroll("env-0/0", life, number, 0, arrays)


def returns(table: RingTable) -> dict[float, tuple[float, float, float]]:
    """Every transition of a small table, by what was seen: (reward, discount, what was seen after it)."""
    drawn = draw(table, 500)
    names = ("observation.obs", "reward", "discount", "next_observation.obs")
    return {
        round(float(seen), 3): (float(reward), float(discount), float(after))
        for seen, reward, discount, after in zip(*(drawn[name].reshape(-1) for name in names), strict=True)
    }


def test_n_step_returns_end_with_their_episode() -> None:
    reward = np.array([[1, 8], [2, 8], [4, 8], [8, 8]], np.float32)
    ended = np.array([[0, 1], [1, 0], [0, 0], [0, 0]], np.bool_)
    total, count, closed = n_step(reward, ended, 3, 0.5)
    np.testing.assert_array_equal(total, [[2, 8], [2, 14], [8, 12], [8, 8]])
    np.testing.assert_array_equal(count, [[2, 1], [1, 3], [2, 2], [1, 1]])
    np.testing.assert_array_equal(closed, [[1, 1], [1, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_stays_within_its_episode(spoilt: float) -> None:
    reward = np.array([[1], [2], [spoilt], [4], [8]], np.float32)
    ended = np.array([[0], [1], [0], [0], [0]], np.bool_)
    np.testing.assert_array_equal(n_step(reward, ended, 3, 0.5)[0], [[2], [2], [spoilt], [8], [8]])


def test_a_transition_of_three_steps_goes_on_in_the_next_unroll() -> None:
    table = table_of(4, 100, n_step=3, discount=0.5)
    put(table, line([1, 2, 4, 8]))
    assert returns(table) == {10.0: (3.0, 0.125, 13.0), 11.0: (6.0, 0.125, 14.0)}
    put(table, line([16, 32, 64, 128], number=2))
    assert returns(table) == {
        10.0: (3.0, 0.125, 13.0),
        # What it leads to is the same observation, now as the first of the next unroll.
        11.0: (6.0, 0.125, 20.0),
        12.0: (12.0, 0.125, 21.0),
        13.0: (24.0, 0.125, 22.0),
        20.0: (48.0, 0.125, 23.0),
        21.0: (96.0, 0.125, 24.0),
    }


def test_a_terminated_transition_is_worth_its_rewards_alone() -> None:
    table = table_of(4, 100, n_step=3, discount=0.5)
    put(table, line([1, 2, 4, 8], terminated=[1, 3], first=[2]))
    assert returns(table) == {
        10.0: (2.0, 0.0, 12.0),
        11.0: (2.0, 0.0, 12.0),
        12.0: (8.0, 0.0, 14.0),
        13.0: (8.0, 0.0, 14.0),
    }


def test_a_truncated_transition_goes_on_from_its_true_last_observation() -> None:
    table = table_of(4, 100, n_step=3, discount=0.5)
    put(table, line([1, 2, 4, 8], truncated=[1, 3]))
    assert returns(table) == {
        10.0: (2.0, 0.25, 901.0),
        11.0: (2.0, 0.5, 901.0),
        12.0: (8.0, 0.25, 903.0),
        13.0: (8.0, 0.5, 903.0),
    }


def test_an_episode_truncated_before_a_step_that_only_resets_ends_there() -> None:
    table = table_of(4, 100, n_step=3, discount=0.5)
    unroll = line([1, 2, 0, 8], first=[3])
    unroll.arrays["truncated"][1], unroll.arrays["valid"][2] = True, False
    put(table, unroll)
    assert returns(table) == {10.0: (2.0, 0.25, 12.0), 11.0: (2.0, 0.5, 12.0)}


def test_rewards_are_clipped_one_by_one_before_they_are_summed() -> None:
    table = table_of(3, 100, n_step=2, discount=0.5, reward_clip=1.0)
    put(table, line([5, -7, 0.5]))
    assert returns(table) == {10.0: (0.5, 0.25, 12.0), 11.0: (-0.75, 0.25, 13.0)}


def test_one_step_without_a_discount_says_whether_to_bootstrap() -> None:
    table = table_of(3, 100)
    put(table, line([5, -7, 0.5], terminated=[1]))
    assert returns(table) == {10.0: (5.0, 1.0, 11.0), 11.0: (-7.0, 0.0, 12.0), 12.0: (0.5, 1.0, 13.0)}


def test_a_new_life_of_a_stream_is_never_reached_from_the_one_before() -> None:
    table = table_of(3, 100, n_step=2, discount=0.5)
    put(table, line([1, 2, 4], number=3, life=1))
    put(table, line([8, 16, 32], number=4, life=2))
    assert sorted(returns(table)) == [30.0, 31.0, 40.0, 41.0]
    put(table, line([8, 16, 32], number=6, life=2))
    assert sorted(returns(table)) == [30.0, 31.0, 40.0, 41.0, 60.0, 61.0]


def actor(unroll: Unroll, taken: list[float], bootstrap: list[float]) -> Unroll:
    arrays = unroll.arrays | {
        "extras.q_taken": np.array(taken, np.float32)[:, None],
        "extras.q_bootstrap": np.array(bootstrap, np.float32)[:, None],
    }
    return Unroll(unroll.slot, unroll.life, unroll.number, 0, arrays)


def priorities(table: RingTable) -> dict[float, float]:
    """The priority of each transition of a table whose alpha is 1."""
    drawn = draw(table, 500)
    return {
        float(seen): round(float(probability) * table.mass, 4)
        for seen, probability in zip(drawn["observation.obs"][:, 0], drawn["probabilities"], strict=True)
    }


def test_items_enter_at_the_actors_own_estimate_once_it_is_known() -> None:
    table = table_of(3, 100, kind="prioritized", alpha=1.0, n_step=2, discount=0.5)
    put(table, actor(line([1, 2, 4]), [10, 20, 30], [0, 0, 8]))
    # |1 + 0.5 * 2 + 0.25 * 8 - 10|; the others end where the actor has not been yet.
    assert priorities(table) == {10.0: 6.0}
    put(table, actor(line([8, 1, 1], number=2, terminated=[1], first=[2]), [0, 0, 0], [40, 80, 8]))
    # |2 + 2 + 10 - 20|, |4 + 4 + 20 - 30|, then to the end: |8 + 0.5 - 0| and |1 - 0|.
    assert priorities(table) == {10.0: 6.0, 11.0: 6.0, 12.0: 2.0, 20.0: 8.5, 21.0: 1.0}


def test_a_truncated_item_whose_last_observation_no_actor_valued_enters_at_the_largest_priority() -> None:
    table = table_of(3, 100, kind="prioritized", alpha=1.0, n_step=2, discount=0.5)
    put(table, actor(line([1, 2, 4], truncated=[1]), [0, 0, 0], [9, 9, 9]))
    assert priorities(table) == {10.0: 1.0, 11.0: 1.0}
    draw_one = draw(table, 1)
    table.update({"keys": draw_one["keys"], "priorities": np.array([5.0])})
    put(table, actor(line([1, 2, 4], number=2, truncated=[1]), [0, 0, 0], [9, 9, 9]))
    assert priorities(table)[20.0] == 5.0


def erring(unroll: Unroll, before: list[float]) -> Unroll:
    arrays = unroll.arrays | {"extras.error_before": np.array(before, np.float32)[:, None]}
    return Unroll(unroll.slot, unroll.life, unroll.number, 0, arrays)


def first_priorities(table: RingTable) -> dict[float, float]:
    """The priority of each sequence of a table whose alpha is 1, by what was seen first."""
    drawn = draw(table, 500)
    chances = drawn["probabilities"] * table.mass
    return {float(o): round(float(p), 4) for o, p in zip(drawn["observation.obs"][0, :, 0], chances, strict=True)}


def test_sequences_enter_at_the_actors_errors_where_these_are_known() -> None:
    options: dict[str, Any] = {"kind": "prioritized", "alpha": 1.0, "sequence": 3, "period": 4}
    # An error comes with the step after it: 0.9 of the largest of 1, 2 and 3, and 0.1 of their mean.
    table = table_of(4, 100, **options)
    put(table, erring(line([0, 0, 0, 0]), [99, 1, 2, 3]))
    assert first_priorities(table) == {10.0: 2.9}
    # The last of them is not known yet where the unroll ends.
    table = table_of(3, 100, **options | {"period": 3})
    put(table, erring(line([0, 0, 0]), [99, 1, 2]))
    assert first_priorities(table) == {10.0: 1.95}
    # The end of an episode that was terminated is, with its next one's first step; of a truncated one it is not.
    for how, expected in (("terminated", 1.95), ("truncated", 1.0)):
        table = table_of(4, 100, **options)
        put(table, erring(line([0, 0, 0, 0], first=[2], **{how: [1]}), [99, 1, 2, 3]))
        put(table, erring(line([0, 0, 0, 0], number=2), [10, 5, 6, 7]))
        assert first_priorities(table) == {10.0: expected, 12.0: 9.6, 20.0: 6.9}
    # What only warms the state up is not learned from, and counts for nothing; nor does one without any known error.
    table = table_of(4, 100, **options | {"burn_in": 1})
    put(table, erring(line([0, 0, 0, 0]), [99, 50, 2, 3]))
    assert first_priorities(table) == {10.0: 2.95}
    table = table_of(1, 100, **options | {"sequence": 1, "period": 1})
    put(table, erring(line([0]), [99]))
    assert first_priorities(table) == {10.0: 1.0}


def test_a_sequence_stops_at_its_episodes_end_and_is_padded() -> None:
    table = table_of(2, 100, sequence=5, period=4)
    unrolls = [line([1, 2], number=2), line([4, 8], number=3), line([16, 32], number=4, truncated=[1])]
    for unroll in unrolls:
        unroll.arrays["state.core"] = np.full((1, 1), unroll.number, np.float32)
        put(table, unroll)
    drawn = draw(table, 100)
    long = np.flatnonzero(drawn["observation.obs"][0, :, 0] == 20.0)[0]
    short = np.flatnonzero(drawn["observation.obs"][0, :, 0] == 40.0)[0]
    assert set(drawn["observation.obs"][0, :, 0]) == {20.0, 40.0}
    np.testing.assert_array_equal(drawn["observation.obs"][:, long, 0], [20, 21, 30, 31, 40, 41])
    np.testing.assert_array_equal(drawn["reward"][:, long], [1, 2, 4, 8, 16])
    np.testing.assert_array_equal(drawn["mask"][:, long], [1, 1, 1, 1, 1])
    np.testing.assert_array_equal(drawn["observation.obs"][:, short, 0], [40, 41, 901, 901, 901, 901])
    np.testing.assert_array_equal(drawn["reward"][:, short], [16, 32, 0, 0, 0])
    np.testing.assert_array_equal(drawn["truncated"][:, short], [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(drawn["mask"][:, short], [1, 1, 0, 0, 0])
    assert drawn["state.core"][[long, short], 0].tolist() == [2.0, 4.0]
    assert drawn["first"].shape == (6, 100)
    assert not drawn["first"].any()


@pytest.mark.parametrize(("burn_in", "starts"), [(0, {20.0, 30.0, 40.0, 42.0}), (2, {20.0, 30.0, 42.0})])
def test_a_sequence_that_ends_within_its_burn_in_is_none_unless_it_begins_its_episode(
    burn_in: int, starts: set[float]
) -> None:
    table = table_of(4, 100, sequence=6, period=4, burn_in=burn_in)
    put(table, line([1, 2, 4, 8], number=2))
    put(table, line([1, 2, 4, 8], number=3))
    # Two steps are left of that episode, and the next one has two.
    put(table, line([1, 2, 4, 8], number=4, truncated=[1, 3]))
    assert set(draw(table, 200)["observation.obs"][0, :, 0]) == starts
    assert table.size == len(starts)


def test_a_sequence_starts_with_each_episode_from_the_initial_state() -> None:
    table = table_of(4, 100, sequence=4, period=8)
    opening = line([1, 2, 4, 8], number=2, truncated=[1])
    opening.arrays["state.core"] = np.full((1, 1), 7, np.float32)
    put(table, opening)
    going_on = line([16, 32, 64, 128], number=3)
    going_on.arrays["state.core"] = np.full((1, 1), 8, np.float32)
    put(table, going_on)
    drawn = draw(table, 100)
    assert set(drawn["observation.obs"][0, :, 0]) == {20.0, 22.0}
    inner = np.flatnonzero(drawn["observation.obs"][0, :, 0] == 22.0)[0]
    np.testing.assert_array_equal(drawn["reward"][:, inner], [4, 8, 16, 32])
    assert drawn["first"][0, inner]
    assert drawn["state.core"][inner, 0] == 0.0


def test_a_whole_unroll_comes_back_as_it_was_inserted() -> None:
    world = World(4, 1, seed=3)
    world.begin("a", 3)
    unroll = world.unroll("a")
    table = table_of(4, 100, kind="unrolls")
    put(table, unroll)
    drawn = draw(table, 60)
    columns = drawn["keys"] // 4
    assert set(columns.tolist()) == {0, 1, 2}
    for name in ("observation.obs", "first", "action", "reward", "terminated", "truncated", "valid", "extras.logp"):
        np.testing.assert_array_equal(drawn[name], unroll.arrays[name][:, columns], err_msg=name)
    for name in ("state.core", "reward_before"):
        np.testing.assert_array_equal(drawn[name], unroll.arrays[name][columns])
    np.testing.assert_array_equal(drawn["versions"], np.repeat(unroll.arrays["versions"][:, None], 60, axis=1))
    given = dict(zip(unroll.arrays["final_index"].tolist(), unroll.arrays["final.obs"][:, 0], strict=True))
    t, i = np.divmod(drawn["final_index"], 60)
    assert [given[int(at)] for at in t * 3 + columns[i]] == drawn["final.obs"][:, 0].tolist()
    assert len(t) == sum(np.count_nonzero(columns == at % 3) for at in given)
    assert drawn["probabilities"].tolist() == [1 / 3] * 60


def goals(number: int, truncated: list[int]) -> Unroll:
    """Reaches -1, -2, ... after each step and wants 500."""
    unroll = line([0.0] * 4, number=number, truncated=truncated)
    arrays = unroll.arrays
    seen = arrays.pop("observation.obs")
    last = arrays.pop("final.obs", np.zeros((0, 1)))
    for name, of in (("obs", lambda x: x), ("achieved_goal", lambda x: -x), ("desired_goal", lambda x: 0 * x + 500)):
        arrays[f"observation.{name}"] = of(seen)
        if truncated:
            arrays[f"final.{name}"] = of(last)
    return unroll


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("final", {10: {-903}, 13: {-903}, 20: {-903}, 23: {-903}}),
        ("future", {10: {-11, -12, -13, -20, -21, -22, -23, -903}, 13: {-20, -21, -22, -23, -903}, 23: {-903}}),
        ("episode", {key: {-11, -12, -13, -20, -21, -22, -23, -903} for key in (10, 13, 23)}),
    ],
)
def test_hindsight_replaces_goals_by_what_the_same_episode_reached(
    strategy: str, expected: dict[int, set[int]]
) -> None:
    table = table_of(4, 100, her={"k": 4, "strategy": strategy})
    put(table, goals(1, []))
    assert table.size == 0
    put(table, goals(2, [3]))
    put(table, goals(3, []))
    assert table.size == 8
    drawn = draw(table, 2000)
    changed = drawn["relabelled"]
    # 0.8 of 2,000, within five standard deviations.
    assert 1510 < np.count_nonzero(changed) < 1690
    assert set(drawn["observation.desired_goal"][~changed, 0]) == {500.0}
    np.testing.assert_array_equal(drawn["observation.desired_goal"], drawn["next_observation.desired_goal"])
    for seen, wanted in expected.items():
        chosen = changed & (drawn["observation.obs"][:, 0] == seen)
        assert set(drawn["observation.desired_goal"][chosen, 0]) == wanted
    # An action's own outcome comes without a change.
    assert set(drawn["next_observation.achieved_goal"][drawn["observation.obs"][:, 0] == 13, 0]) == {-20.0}


def test_an_episode_whose_start_was_overwritten_is_relabelled_by_what_is_left_of_it() -> None:
    table = table_of(4, 12, her={"k": 4, "strategy": "episode"})
    for number, truncated in ((1, []), (2, [3]), (3, [3]), (4, [3])):
        put(table, goals(number, truncated))
    drawn = draw(table, 2000)
    chosen = drawn["relabelled"] & (drawn["observation.obs"][:, 0] == 20)
    assert set(drawn["observation.desired_goal"][chosen, 0]) == {-21, -22, -23, -903}


def test_an_episode_goes_on_after_a_first_step_that_is_left_out_with_goals_of_its_own_alone() -> None:
    table = table_of(4, 12, her={"k": 4, "strategy": "episode"})
    for number, truncated in ((1, []), (2, []), (3, [3]), (4, [2]), (5, [3])):
        unroll = goals(number, truncated)
        if number == 4:
            unroll.arrays["reward"][3] = np.nan
        put(table, unroll)
    drawn = draw(table, 2000)
    chosen = drawn["relabelled"] & (drawn["observation.obs"][:, 0] >= 50)
    assert set(drawn["observation.desired_goal"][chosen, 0]) == {-51, -52, -53, -903}


def test_relabelled_steps_are_discounted_as_ones_that_end_nothing_even_where_all_ended() -> None:
    table = table_of(4, 100, her={"k": 1}, discount=0.9)
    for number in range(1, 5):
        unroll = goals(number, [])
        unroll.arrays["terminated"][:] = unroll.arrays["first"][1:] = True
        put(table, unroll)
    drawn = draw(table, 200)
    np.testing.assert_array_equal(drawn["discount"], np.where(drawn["relabelled"], np.float32(0.9), 0))
    batch = to_transitions(drawn | {"relative": np.ones(200, np.float32)}, torch.device("cpu"))
    found = Goals("by_hand:sparse").relabel(batch).discount
    np.testing.assert_array_equal(found, drawn["discount"])


def test_streams_of_which_nothing_is_left_are_forgotten() -> None:
    world, table = World(2, 2, seed=3), table_of(2, 24)
    for life in range(200):
        world.begin(f"env-{life}", 2)
        for _ in range(2):
            put(table, world.unroll(f"env-{life}"))
    # Room for six unrolls, so for no more than three of these streams.
    assert len(table.freeze()["streams"]) == 3


def test_hindsight_without_goals_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"sends no goals to table 'ring' \(set its her\.k to 0\)"):
        put(table_of(2, 10, her={"k": 4}), line([1, 2]))


def test_goals_that_cannot_be_exchanged_are_refused_before_any_draw() -> None:
    unroll = line([1, 2])
    unroll.arrays["observation.achieved_goal"] = np.zeros((3, 1, 1), np.float32)
    unroll.arrays["observation.desired_goal"] = np.zeros((3, 1, 2), np.float32)
    table = table_of(2, 10, her={"k": 4})
    with pytest.raises(ProtocolError, match=r"goals of unlike shapes to table 'ring': \[\(1,\), \(2,\)\]"):
        put(table, unroll)
    assert table.inserts == 0


def test_stacks_longer_than_an_unroll_reaches_back_are_refused() -> None:
    world = World(2, 4, seed=0)
    world.begin("a", 1)
    with pytest.raises(ConfigError, match=r"rollout\.unroll=2 is too short for stacks of 4 \(set it to 3\)"):
        put(table_of(2, 10), world.unroll("a"))


def played(data: st.DataObject, world: World, table: RingTable) -> None:
    """Random lives of random streams, some of whose unrolls are lost."""
    widths: dict[str, int] = {}
    for _ in range(data.draw(st.integers(1, 14))):
        slot = data.draw(st.sampled_from("abc"))
        event = data.draw(st.sampled_from(["on"] * 6 + ["die", "skip"]))
        if slot not in widths or event == "die":
            widths[slot] = data.draw(st.integers(1, 3))
            world.begin(slot, widths[slot])
        elif event == "skip":
            world.skip(slot)
        put(table, world.unroll(slot))


def alive(world: World, table: RingTable, capacity: int, unroll: int) -> dict[int, Step]:
    """The steps that a ring of that capacity still holds, by what was seen."""
    slots = capacity // unroll
    return {step.seen[-1]: step for column in world.columns[-slots:] for step in column}


def stack_is_here(step: Step, here: dict[int, Step]) -> bool:
    return set(step.seen) <= {0} | here.keys() and step.whole_stack


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    unroll=st.integers(3, 5),
    n=st.integers(1, 4),
    slots=st.integers(3, 20),
    stack=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_every_transition_drawn_is_one_that_was_inserted(
    data: st.DataObject, unroll: int, n: int, slots: int, stack: int, seed: int
) -> None:
    world, table = World(unroll, stack, seed), table_of(unroll, slots * unroll, seed, n_step=n, discount=0.5)
    played(data, world, table)
    here = alive(world, table, slots * unroll, unroll)
    expected = {
        seen: (step, step.future()[:n])
        for seen, step in here.items()
        if step.valid and (len(step.future()) >= n or step.future()[-1].ended)
    }
    whole = {seen for seen, (step, _) in expected.items() if stack == 1 or stack_is_here(step, here)}
    if stack == 1:
        assert table.size == len(expected)
    else:
        # Of the oldest unrolls of a stream, steps are left out that would not miss a frame.
        assert len(whole) - 2 * 9 <= table.size <= len(whole)
    assume(table.size)
    drawn = draw(table, 64)
    for i in range(64):
        seen = drawn["observation.obs"][i].reshape(-1)
        step, steps = expected[int(seen[-1])]
        assert int(seen[-1]) in whole
        assert seen.tolist() == list(step.seen)
        assert drawn["action"][i] == step.action
        assert drawn["extras.logp"][i] == -step.seen[-1]
        assert drawn["reward"][i] == sum(0.5**k * later.reward for k, later in enumerate(steps))
        assert drawn["discount"][i] == (0.0 if steps[-1].terminated else 0.5 ** len(steps))
        assert drawn["next_observation.obs"][i].reshape(-1).tolist() == list(steps[-1].after)
    assert len(set(drawn["keys"].tolist())) == len(set(drawn["observation.obs"].reshape(64, -1)[:, -1].tolist()))


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    unroll=st.integers(2, 4),
    periods=st.integers(1, 3),
    length=st.integers(2, 9),
    slots=st.integers(3, 20),
    stack=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_every_sequence_drawn_is_one_that_was_inserted(
    data: st.DataObject, unroll: int, periods: int, length: int, slots: int, stack: int, seed: int
) -> None:
    world = World(unroll, stack, seed)
    table = table_of(unroll, slots * unroll, seed, sequence=length, period=periods * unroll)
    played(data, world, table)
    assume(table.size)
    here = alive(world, table, slots * unroll, unroll)
    drawn = draw(table, 16)
    for i in range(16):
        frames = drawn["observation.obs"][:, i, 0].tolist()
        step = here[int(frames[stack - 1])]
        steps = step.future()[:length]
        assert step.first or step.at == 0
        assert len(steps) == length or steps[-1].ended
        assert drawn["mask"][:, i].tolist() == [True] * len(steps) + [False] * (length - len(steps))
        assert frames[: stack + len(steps)] == [*step.seen, *(later.after[-1] for later in steps)]
        for name in ("action", "reward", "terminated", "truncated"):
            assert drawn[name][: len(steps), i].tolist() == [getattr(later, name) for later in steps], name
        assert not drawn["reward"][len(steps) :, i].any()
        assert drawn["state.core"][i, 0] == (0.0 if step.at else step.seen[-1])
        assert drawn["first"][:, i].tolist() == [step.first] + [False] * length


@settings(max_examples=60, deadline=None)
@given(data=st.data(), unroll=st.integers(2, 4), slots=st.integers(3, 20), stack=st.sampled_from([1, 3]))
def test_every_unroll_drawn_is_one_that_was_inserted(data: st.DataObject, unroll: int, slots: int, stack: int) -> None:
    world, table = World(unroll, stack, seed=slots), table_of(unroll, slots * unroll, kind="unrolls")
    played(data, world, table)
    assume(table.size)
    drawn = draw(table, 16)
    by_first = {column[0].seen[-1]: column for column in world.columns[-slots:]}
    finals = dict(zip(drawn.get("final_index", np.zeros(0)).tolist(), drawn["final.obs"], strict=True))
    stacks = stacked(drawn["observation.obs"], drawn["first"], np.arange(16 * (unroll + 1)), stack)
    stacks = stacks.reshape(unroll + 1, 16, stack)
    for i in range(16):
        column = by_first[int(drawn["observation.obs"][stack - 1, i, 0])]
        following = column[0].line[column[0].place + unroll :]
        if following:
            assert stacks[-1, i, -1] == following[0].seen[-1]
        for t, step in enumerate(column):
            assert drawn["first"][t, i] == step.first
            if stack == 1:
                assert drawn["valid"][t, i] == step.valid
            if drawn["valid"][t, i]:
                # Where the frames before an unroll are gone, steps whose stacks miss them are masked.
                assert stacks[t, i].tolist() == list(step.seen)
                assert drawn["action"][t, i] == step.action
            if (t * 16 + i) in finals:
                assert finals[t * 16 + i].reshape(-1).tolist()[-1] == step.after[-1]
                assert not drawn["valid"][t, i] or finals[t * 16 + i].reshape(-1).tolist() == list(step.after)


def test_an_episode_is_cut_before_a_step_whose_reward_is_not_finite() -> None:
    table = table_of(4, 100, n_step=3, discount=0.5)
    put(table, line([1, 2, np.nan, 8]))
    put(table, line([16, 32, 64, 128], number=2))
    assert returns(table) == {
        10.0: (2.0, 0.25, 12.0),
        11.0: (2.0, 0.5, 12.0),
        13.0: (24.0, 0.125, 22.0),
        20.0: (48.0, 0.125, 23.0),
        21.0: (96.0, 0.125, 24.0),
    }
    assert (table.inserts, table.spoilt) == (7, 1)
    assert table.first_spoilt == "step 2 of environment 0 in unroll 1 of env-0/0"


def test_nothing_goes_on_into_an_unroll_whose_first_reward_is_not_finite() -> None:
    table = table_of(4, 100, n_step=3, discount=0.5)
    put(table, line([1, 2, 4, 8]))
    put(table, line([np.inf, 32, 64, 128], number=2))
    assert returns(table) == {10.0: (3.0, 0.125, 13.0), 11.0: (6.0, 0.125, 14.0), 21.0: (96.0, 0.125, 24.0)}


def test_neither_the_step_from_nor_the_step_to_an_observation_that_is_not_finite_is_drawn() -> None:
    table = table_of(4, 100, discount=0.5)
    first, second = line([1, 2, 4, 8]), line([16, 32, 64, 128], number=2)
    first.arrays["observation.obs"][[1, 4]] = second.arrays["observation.obs"][0] = np.nan
    for unroll in (first, second):
        put(table, unroll)
    assert set(returns(table)) == {12.0, 21.0, 22.0, 23.0}


def test_a_last_observation_that_is_not_finite_costs_its_step_alone() -> None:
    table = table_of(4, 100, discount=0.5)
    unroll = line([1, 2, 4, 8], truncated=[1])
    unroll.arrays["final.obs"][0] = np.nan
    put(table, unroll)
    assert returns(table) == {10.0: (1.0, 0.5, 11.0), 12.0: (4.0, 0.5, 13.0), 13.0: (8.0, 0.5, 14.0)}


@pytest.mark.parametrize(
    "kind", [{"n_step": 3, "discount": 0.9}, {"sequence": 6, "period": 4}, {"kind": "unrolls"}], ids=str
)
@pytest.mark.parametrize("frames", [1, 2])
def test_no_item_has_anything_that_is_not_finite(kind: dict[str, object], frames: int) -> None:
    table, random = table_of(4, 400, **kind), np.random.default_rng(5)
    for number in range(1, 30):
        arrays: Arrays = {
            "observation.obs": random.normal(size=(4 + frames, 3, 2)).astype(np.float32),
            "first": random.random((5, 3)) < 0.1,
            "action": np.zeros((4, 3), np.int64),
            "reward": random.normal(size=(4, 3)).astype(np.float32),
            "terminated": random.random((4, 3)) < 0.1,
            "truncated": np.zeros((4, 3), np.bool_),
            "valid": np.ones((4, 3), np.bool_),
            "state.core": np.zeros((3, 2), np.float32),
            "reward_before": np.zeros(3, np.float32),
            "versions": np.zeros(4, np.int64),
        }
        for name in ("observation.obs", "reward", "state.core", "reward_before"):
            arrays[name][random.random(arrays[name].shape) < 0.03] = random.choice([np.nan, np.inf, -np.inf])
        put(table, Unroll("env-0/0", 1, number, 0, arrays))
    assert table.spoilt > 10
    assert all(np.isfinite(array).all() for array in draw(table, 2000).values())
