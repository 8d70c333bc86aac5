"""What a ring's settings must be for its items to be made of what env-servers send. Knows the config, and no ring."""

from __future__ import annotations

import logging
import math

from common.config import Config, TableConfig
from common.errors import ConfigError

log = logging.getLogger("headrace.replay")


def least_capacity(key: str, table: TableConfig, config: Config) -> int:
    """Gives the steps that a ring must keep for its items to be made; raises ConfigError if they never could be."""
    unroll = config.rollout.unroll
    if table.her.k:
        _check_hindsight(key, table)
    if table.n_step > 1 and table.discount is None:
        raise ConfigError(f"{key}.n_step={table.n_step} without a discount", f"set {key}.discount to the algorithm's")
    # Draws are counted for each step, and of an item: in a long episode one comes every so many steps.
    apart = unroll if table.kind == "unrolls" else table.period if table.sequence else 1
    if 0 < table.max_times_sampled < (draws := table.samples_per_insert * apart):
        raise ConfigError(
            f"{key}.samples_per_insert={table.samples_per_insert:g} cannot be had: of {apart} steps one item "
            f"is made, and gone after {key}.max_times_sampled={table.max_times_sampled} draws",
            f"set {key}.max_times_sampled to {math.ceil(draws)} or more, or to 0",
        )
    if table.sequence and (table.period == 0 or table.period % unroll):
        raise ConfigError(
            f"{key}.period={table.period} is no multiple of rollout.unroll={unroll}",
            f"set it to {max(1, table.period // unroll) * unroll}: a state stands at the start of each unroll only",
        )
    if table.burn_in and table.burn_in >= table.sequence:
        raise ConfigError(
            f"{key}.burn_in={table.burn_in} leaves nothing of sequences of {table.sequence} steps",
            f"set it below {table.sequence}",
        )
    # The fullest shard's: groups go to the replay-servers in turn, and none is cut in two.
    longest, groups = max(table.sequence, table.n_step), config.env.groups * config.env.servers
    envs = config.env.envs * -(-groups // config.replay.servers)
    needed = (longest + 2 * unroll) * envs
    if longest > 1 and table.capacity < needed:
        raise ConfigError(
            f"{key}.capacity={table.capacity} would deadlock: items of {longest} steps are overwritten before they end",
            f"set it to at least {needed}",
        )
    # With max_bytes an eighth of the steps have side rows: the newest observations of all streams take half at most.
    return max(needed, 16 * envs)


def tell_of_uneven_shards(name: str, config: Config, shard: int) -> None:
    """Warns, on the first of several replay-servers, that the groups cannot be shared out evenly among them."""
    groups, servers = config.env.servers * config.env.groups, config.replay.servers
    if groups % servers and not shard:
        log.warning(
            "%d groups on %d replay-servers: the shards of table %s fill unevenly, and groups that share one with more "
            "others may be slower (make env.servers times env.groups a multiple of replay.servers)",
            *(groups, servers, name),
        )


def _check_hindsight(key: str, table: TableConfig) -> None:
    """Raises ConfigError if goals would not be exchanged, or in items whose rewards the new ones would not be like."""
    wrong = (
        ("kind", table.kind if table.kind == "unrolls" else None, "uniform or prioritized"),
        ("sequence", table.sequence or None, "0"),
        ("n_step", table.n_step if table.n_step > 1 else None, "1"),
        ("reward_clip", table.reward_clip or None, "0"),
    )
    for name, value, right in wrong:
        if value is not None:
            raise ConfigError(
                f"{key}.her.k={table.her.k} with {key}.{name}={value}: goals are exchanged in transitions of one step, "
                "and their rewards not clipped",
                f"set {key}.{name} to {right}, or {key}.her.k to 0",
            )
