"""A ring's checkpoint: what comes back, and what happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import Service, short_dir, until, write_config
from streams import World

from common.config import CONFIGS, Config, TableConfig, load, validate
from common.errors import ConfigError
from common.messages import Batch, Insert, Inserted, Ok, Sample, UpdatePriorities
from common.service import connect, make_context
from common.transport.client import Client
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec
from services.replay_server.ring import checkpoint
from services.replay_server.ring.requirements import tell_of_uneven_shards
from services.replay_server.ring.table import RingTable
from services.replay_server.server import make_table
from services.replay_server.unroll import Drawn, Stored, Unroll

KINDS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform"},
    "prioritized": {"kind": "prioritized", "n_step": 3, "discount": 0.9},
    "sequences": {"kind": "prioritized", "sequence": 6, "period": 3},
    "unrolls": {"kind": "unrolls"},
    "newest": {"kind": "prioritized", "newest": 0.5},
    "taken away": {"kind": "uniform", "newest": 0.25, "max_times_sampled": 3},
    # Room for 72 steps with few last observations, in a table of many more.
    "bounded": {"kind": "uniform", "capacity": 60_000, "max_bytes": 6_000},
}
LIMITS = {"capacity": 60, "min_size": 20, "samples_per_insert": 0.5, "error_buffer": 40.0}


def table_of(settings: dict[str, Any], seed: int = 0) -> RingTable:
    config = TableConfig.model_validate(LIMITS | settings)
    return RingTable("ring", config, 3, largest_insert=9, largest_sample=8, seed=seed)


def put(table: RingTable, unroll: Unroll) -> list[Stored | Drawn]:
    table.check(unroll)
    table.insert(unroll, unroll.number)
    return table.poll(0.0)


def draw(table: RingTable, n: int = 8) -> Arrays:
    table.sample(n, 0, "draw")
    drawn = next(answer for answer in table.poll(0.0) if isinstance(answer, Drawn))
    assert drawn.arrays is not None
    return drawn.arrays


def is_there(path: Path) -> bool:
    with checkpoint.read(path) as saved:
        return saved is not None


def restored(table: RingTable, path: Path) -> bool:
    with checkpoint.read(path) as saved:
        assert saved is not None
        return table.restore(saved)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stack", [1, 3])
def test_a_restored_table_goes_on_as_if_nothing_had_happened(kind: str, stack: int, tmp_path: Path) -> None:
    world, table = World(3, stack, seed=1), table_of(KINDS[kind])
    for slot in "ab":
        world.begin(slot, 3)
    for _ in range(6):
        put(table, world.unroll("a"))
        put(table, world.unroll("b"))
    update = draw(table)
    if "prioritized" in KINDS[kind].values():
        table.update({"keys": update["keys"], "priorities": np.arange(8.0)})
    table.poll(0.0)
    state = table.freeze()
    checkpoint.write(tmp_path / "ring", state)
    table.thaw()
    checkpoint.commit(tmp_path / "ring")
    other = table_of(KINDS[kind], seed=99)
    assert restored(other, tmp_path / "ring")
    for name in ("size", "mass", "inserts", "samples", "stale"):
        assert getattr(other, name) == getattr(table, name), name
    world.begin("b", 2)
    for turn in range(10):
        for slot in "ab" if turn else "":
            unroll = world.unroll(slot)
            assert put(table, unroll) == put(other, unroll) == [Stored(unroll.number, 0)]
        one, two = draw(table), draw(other)
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert table.nbytes == other.nbytes
    assert (table.lost, other.lost) == (0, 0)


def test_requests_wait_while_a_table_is_written_and_none_is_lost(tmp_path: Path) -> None:
    world, table = World(3, 1, seed=1), table_of(KINDS["prioritized"])
    world.begin("a", 3)
    for _ in range(4):
        put(table, world.unroll("a"))
    keys = draw(table)["keys"]
    mass, inserts = table.mass, table.inserts
    state = table.freeze()
    assert put(table, world.unroll("a")) == []
    table.sample(4, 0, "draw")
    table.update({"keys": keys, "priorities": np.full(8, 50.0)})
    assert table.poll(1.0) == []
    assert {why for _, why in table.reasons()} == {"the table is being written to its checkpoint"}
    checkpoint.write(tmp_path / "ring", state)
    table.thaw()
    stored, drawn = table.poll(3.0)
    assert (stored, type(drawn)) == (Stored(5, 0), Drawn)
    assert table.blocked_seconds == {"insert": 3.0, "sample": 2.0}
    assert table.mass > mass + 8
    checkpoint.commit(tmp_path / "ring")
    other = table_of(KINDS["prioritized"])
    assert restored(other, tmp_path / "ring")
    assert (other.mass, other.inserts) == (mass, inserts)


def test_what_a_restored_table_has_missed_is_counted_and_not_bridged(tmp_path: Path) -> None:
    world, table = World(3, 1, seed=1), table_of(KINDS["uniform"])
    world.begin("a", 2)
    put(table, world.unroll("a"))
    state = table.freeze()
    checkpoint.write(tmp_path / "ring", state)
    checkpoint.commit(tmp_path / "ring")
    other = table_of(KINDS["uniform"])
    assert restored(other, tmp_path / "ring")
    world.skip("a")
    world.skip("a")
    put(other, world.unroll("a"))
    # Two unrolls of three steps of two environments.
    assert other.lost == 12


def test_what_an_empty_table_has_missed_is_told_by_streams_that_do_not_begin() -> None:
    world, table = World(3, 1, seed=1), table_of(KINDS["uniform"])
    for slot in "abc":
        world.begin(slot, 2)
    world.skip("a")
    world.skip("b")
    world.skip("b")
    for slot in "abc":
        put(table, world.unroll(slot))
    # Three unrolls of three steps of two environments; stream c is new.
    assert table.lost == 18


def test_a_stream_that_comes_back_after_all_of_it_was_overwritten_has_lost_nothing() -> None:
    world, table = World(3, 1, seed=1), table_of(KINDS["uniform"])
    for slot in "ab":
        world.begin(slot, 2)
        put(table, world.unroll(slot))
    # Room for 60 steps: ten unrolls of stream b.
    for _ in range(10):
        put(table, world.unroll("b"))
    put(table, world.unroll("a"))
    assert table.lost == 0


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path: Path) -> None:
    world, table = World(3, 1, seed=1), table_of(KINDS["uniform"])
    world.begin("a", 2)
    put(table, world.unroll("a"))
    state = table.freeze()
    checkpoint.write(tmp_path / "ring", state)
    checkpoint.commit(tmp_path / "ring")
    other = table_of(KINDS["uniform"] | {"n_step": 2, "discount": 0.9})
    assert not restored(other, tmp_path / "ring")
    assert (other.size, other.inserts) == (0, 0)


def test_a_checkpoint_that_was_cut_short_leaves_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "replay" / "ring"
    assert not is_there(path)
    checkpoint.write(path, {"a": np.arange(3), "b": [1, {"c": np.zeros(0)}], "big": 1 << 100})
    assert not is_there(path)
    checkpoint.commit(path)
    checkpoint.write(path, {"a": np.arange(4)})
    with checkpoint.read(path) as saved:
        assert saved is not None
        assert saved["a"].tolist() == [0, 1, 2]
        assert saved["b"][1]["c"].shape == (0,)
        assert saved["big"] == 1 << 100


@pytest.mark.parametrize("damage", ["empty", "no archive", "cut off", "an array of it"])
def test_a_checkpoint_that_cannot_be_read_is_named_with_what_to_do(damage: str, tmp_path: Path) -> None:
    world, table, path = World(3, 1, seed=1), table_of(KINDS["uniform"]), tmp_path / "ring"
    world.begin("a", 2)
    put(table, world.unroll("a"))
    checkpoint.write(path, table.freeze())
    checkpoint.commit(path)
    written = path.read_bytes()
    half = len(written) // 2
    spoilt = written[:half] + bytes(b ^ 0xFF for b in written[half : half + 64]) + written[half + 64 :]
    path.write_bytes(
        {"empty": b"", "no archive": b"x" * 99, "cut off": written[:half], "an array of it": spoilt}[damage]
    )
    with pytest.raises(
        ConfigError, match=r"checkpoint .*ring cannot be read: .*remove it: the table then starts empty"
    ):
        restored(table_of(KINDS["uniform"]), path)


def test_a_checkpoint_that_finds_no_room_leaves_nothing_but_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    checkpoint.write(path, {"a": np.arange(3)})
    checkpoint.commit(path)
    path.with_suffix(".partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(path, {"a": np.zeros(1_000_000)})
    assert [left.name for left in tmp_path.iterdir()] == ["ring"]


def test_restoring_takes_one_array_more_than_the_table(tmp_path: Path) -> None:
    names, each = [f"observation.{name}" for name in "abcdefgh"], 12_500
    arrays: Arrays = {name: np.ones((4, 1, each)) for name in names}
    arrays |= {name: np.zeros((3, 1), np.bool_) for name in ("terminated", "truncated")}
    arrays |= {"first": np.zeros((4, 1), np.bool_), "valid": np.ones((3, 1), np.bool_)}
    arrays |= {"action": np.zeros((3, 1), np.int64), "reward": np.zeros((3, 1), np.float32)}
    settings = {"kind": "uniform", "samples_per_insert": 0, "capacity": 30}
    table, other = table_of(settings), table_of(settings)
    for number in range(10):
        put(table, Unroll("a", 1, number + 1, 0, arrays))
    checkpoint.write(tmp_path / "ring", table.freeze())
    checkpoint.commit(tmp_path / "ring")
    tracemalloc.start()
    try:
        assert restored(other, tmp_path / "ring")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Of each of the eight, 30 frames of 100,000 bytes were written.
    assert 0 < peak - held < 1.5 * 3_000_000


SPEC = EnvSpec("test", (ArraySpec("obs", "<f8", (1,)),), ActionSpec("discrete", "<i8", (), (2,)))


def job(directory: Path) -> dict[str, Any]:
    return {
        "env": {"envs": 2, "groups": 1},
        "rollout": {"unroll": 4},
        "replay": {"tables": {"experience": {"kind": "prioritized", "capacity": 400}}, "checkpoint_s": 0.1},
        "learner": {"batch": 8},
        "net": {"experience": [f"ipc://{directory}/r"], "resend_s": 0.3},
    }


class Peers:
    """An env-server's and a learner's client of one replay-server."""

    def __init__(self, config: Config, world: World) -> None:
        self.world, self.steps = world, 0
        world.begin("env-0/0", 2)
        address = config.net.experience[0]
        env, learner = make_context(config, "env"), make_context(config, "learner")
        hello = env.hello(SPEC.to_wire(), (("env-0/0", 1),))
        self.env: Client = connect(env, address, "replay", max_in_flight=1, hello=hello)
        self.learner: Client = connect(learner, address, "replay", max_in_flight=1)

    async def insert(self) -> None:
        unroll = self.world.unroll("env-0/0")
        arrays = unroll.arrays | {
            "episode_returns": np.zeros(0, np.float32),
            "episode_lengths": np.zeros(0, np.int32),
        }
        self.steps += 8
        insert = Insert(("experience",), "env-0/0", 1, unroll.number, 0, self.steps, self.steps, arrays)
        assert await self.env.request(insert) == Inserted(0)

    async def draw(self) -> Batch:
        batch = await self.learner.request(Sample("experience", 8, 0))
        assert isinstance(batch, Batch)
        return batch

    async def update(self, life: int, batch: Batch, priority: float) -> None:
        arrays = {"keys": batch.arrays["keys"], "priorities": np.full(8, priority, np.float32)}
        assert await self.learner.request(UpdatePriorities("experience", life, arrays)) == Ok()


@contextmanager
def served(checkpoint_s: float) -> Iterator[tuple[Peers, Path, Callable[..., Service]]]:
    """Peers, the run directory, and what starts a life of their replay-server, with settings of its own if given."""
    with short_dir() as directory:
        settings = job(directory)
        settings["replay"]["checkpoint_s"] = checkpoint_s
        config = write_config(directory / "job.yaml", settings)
        peers = Peers(load(config, (), {}), World(4, 1, seed=3))
        lives: list[Service] = []

        def start(*overrides: str) -> Service:
            lives.append(Service("replay", config, directory, overrides))
            return lives[-1]

        try:
            yield peers, directory, start
        finally:
            for client in (peers.env, peers.learner):
                client.close()
            for service in lives:
                service.kill()


async def test_a_killed_replay_server_comes_back_with_its_tables_and_says_what_is_lost() -> None:
    with served(0.1) as (peers, directory, start):
        first, saved = start(), directory / "replay" / "0" / "experience"
        for _ in range(3):
            await peers.insert()
        batch = await peers.draw()
        life = peers.learner.server_life
        await peers.update(life, batch, 30.0)
        raised = await peers.draw()
        assert raised.mass > batch.mass
        await until(saved.exists, "a checkpoint")
        written = saved.stat().st_mtime_ns
        # The second from now is begun after all of the above.
        for _ in range(2):
            await until(lambda: saved.stat().st_mtime_ns > written, "another checkpoint")  # noqa: B023
            written = saved.stat().st_mtime_ns
        first.kill()
        second = start()
        await peers.insert()
        after = await peers.draw()
        assert after.size > raised.size
        assert after.mass == pytest.approx(raised.mass + (after.size - raised.size) * 30.0**0.6)
        await peers.update(life, after, 1000.0)
        assert (await peers.draw()).mass == after.mass
        back = f"table experience is back with {raised.size} items of {raised.size} steps inserted"
        assert back in second.text()
        health = json.loads(await asyncio.to_thread(_fetch, f"{second.url()}/healthz"))
        assert health["notice"].startswith(back)
        await peers.update(peers.learner.server_life, after, 1000.0)
        assert (await peers.draw()).mass > after.mass


@pytest.mark.parametrize("checkpoint_s", [0.1, 600.0])
async def test_a_replay_server_that_is_told_to_stop_writes_its_tables_once_more(checkpoint_s: float) -> None:
    with served(checkpoint_s) as (peers, directory, start):
        first, path = start(), directory / "replay" / "0" / "experience"
        for _ in range(3):
            await peers.insert()
        size = (await peers.draw()).size
        first.process.terminate()
        assert await first.ended() == 0, first.text()
        with checkpoint.read(path) as saved:
            assert saved is not None
            assert saved["table"]["counts"][0] == size
        second = start()
        await peers.insert()
        assert f"of {size} steps inserted" in second.text()
        assert "lost" not in second.text().replace("what came after is lost", "")


async def test_a_replay_server_leaves_a_checkpoint_of_other_settings_for_whoever_puts_these_back() -> None:
    with served(600.0) as (peers, directory, start):
        first, path = start(), directory / "replay" / "0" / "experience"
        await peers.insert()
        first.process.terminate()
        assert await first.ended() == 0, first.text()
        written = path.read_bytes()
        second = start("replay.tables.experience.alpha=0.5")
        await peers.insert()
        second.process.terminate()
        assert await second.ended() == 0, second.text()
        assert "with other settings" in second.text()
        assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("checkpoint_s", "why"), [(0.0, "replay.checkpoint_s is 0"), (600.0, "there is no checkpoint yet")]
)
async def test_a_table_that_starts_empty_amid_a_job_says_so_and_what_is_lost(checkpoint_s: float, why: str) -> None:
    with served(checkpoint_s) as (peers, _, start):
        first = start()
        for _ in range(3):
            await peers.insert()
        assert "empty" not in first.text()
        first.kill()
        second = start()
        await peers.insert()
        said = f"table experience starts empty: {why}; at least 24 steps that it held are lost"
        await until(lambda: said in second.text(), said)
        health = json.loads(await asyncio.to_thread(_fetch, f"{second.url()}/healthz"))
        assert health["notice"] == said


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"n_step": 3}, r"experience\.n_step=3 without a discount"),
        (
            {"n_step": 3, "discount": 0.9, "her": {"k": 4}},
            r"experience\.her\.k=4 with replay.*\.n_step=3: .*\(set replay\.tables\.experience\.n_step to 1, or",
        ),
        (
            {"sequence": 8, "period": 4, "her": {"k": 1}},
            r"experience\.her\.k=1 with .*\.sequence=8: .*\.sequence to 0, or replay\.tables\.experience\.her\.k to 0",
        ),
        (
            {"samples_per_insert": 2.0, "max_times_sampled": 1},
            r"experience\.samples_per_insert=2 cannot be had: .*\.max_times_sampled=1 draws .* 2 or more, or to 0",
        ),
        (
            {"sequence": 8, "period": 8, "samples_per_insert": 0.5, "max_times_sampled": 3},
            r"samples_per_insert=0\.5 cannot be had: of 8 steps one.*_sampled=3 draws .* 4 or more, or to 0",
        ),
        (
            {"kind": "unrolls", "samples_per_insert": 0.5, "max_times_sampled": 1},
            r"samples_per_insert=0\.5 cannot be had: of 4 steps one.*_sampled=1 draws .* 2 or more, or to 0",
        ),
        (
            {"reward_clip": 1.0, "her": {"k": 1}},
            r"her\.k=1 with .*\.reward_clip=1\.0: .* rewards not clipped \(set .*\.reward_clip to 0, or",
        ),
        ({"kind": "unrolls", "her": {"k": 1}}, r"her\.k=1 with .*\.kind=unrolls: .*\.kind to uniform or prioritized"),
        ({"sequence": 8, "period": 6}, r"experience\.period=6 is no multiple of rollout\.unroll=4 \(set it to 4"),
        ({"sequence": 8, "period": 0}, r"experience\.period=0 is no multiple"),
        ({"sequence": 8, "period": 4, "burn_in": 8}, r"\.burn_in=8 leaves nothing of sequences of 8 .*set it below 8"),
        ({"sequence": 8, "period": 4, "capacity": 31}, r"experience\.capacity=31 would deadlock.*at least 32\)"),
    ],
)
def test_rings_whose_items_could_never_be_made_are_refused(tree: dict[str, Any], message: str) -> None:
    with short_dir() as directory:
        settings = job(directory)
        settings["replay"]["tables"]["experience"] |= tree
        config = load(write_config(directory / "job.yaml", settings), (), {})
        with pytest.raises(ConfigError, match=message):
            make_table("experience", config)


@pytest.mark.parametrize("times", [4, 0])
def test_as_many_draws_of_a_sequence_as_steps_between_two_call_for_are_taken(times: int) -> None:
    table = {"samples_per_insert": 0.5, "error_buffer": 100, "max_times_sampled": times}
    sequences = {"kind": "uniform", "sequence": 8, "period": 8, "capacity": 256} | table
    tree = {"rollout": {"unroll": 4}, "replay": {"tables": {"experience": sequences}}, "learner": {"batch": 1}}
    make_table("experience", validate(tree))


def sharded(servers: int, groups: int, capacity: int = 1000) -> Config:
    table = {"kind": "uniform", "capacity": capacity, "sequence": 200, "period": 4}
    return validate(
        {
            "env": {"groups": groups, "envs": 1},
            "rollout": {"unroll": 4},
            "replay": {"servers": servers, "tables": {"experience": table}},
            "learner": {"batch": 1},
        }
    )


def test_the_shard_with_the_most_groups_decides_about_the_least_capacity() -> None:
    # Two of the three groups send to the first of two shards: 2 · (200 + 2 · 4) steps.
    with pytest.raises(ConfigError, match=r"capacity=415 would deadlock.*at least 416\)"):
        make_table("experience", sharded(2, 3, capacity=415))
    make_table("experience", sharded(2, 3, capacity=416))
    with pytest.raises(ConfigError, match=r"capacity=415 would deadlock.*at least 416\)"):
        make_table("experience", sharded(2, 4, capacity=415))


def test_groups_that_cannot_be_shared_out_evenly_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for servers, groups in ((2, 4), (1, 3)):
        tell_of_uneven_shards("experience", sharded(servers, groups), 0)
    assert caplog.messages == []
    for shard in range(2):
        tell_of_uneven_shards("experience", sharded(2, 3), shard)
    (text,) = caplog.messages
    assert text.startswith("3 groups on 2 replay-servers: the shards of table experience fill unevenly")


def test_a_coupled_table_of_stored_unrolls_gives_as_many_as_a_batch_mixes_in() -> None:
    limits = ["samples_per_insert=7", "error_buffer=100000"]
    config = load(CONFIGS / "cartpole_laser.yaml", [f"replay.tables.replayed.{limit}" for limit in limits], {})
    mixed = config.learner.replayed.per_online * config.learner.batch * config.env.envs
    table = make_table("replayed", config)
    table.sample(mixed, 0, "draw")
    with pytest.raises(ConfigError, match=f"checked for at most {mixed}"):
        table.sample(mixed + 1, 0, "draw")
