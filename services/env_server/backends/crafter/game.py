"""One game of Crafter: episodes one after another, each a world and a player, stepped in the package's order.

Knows no group and no observation arrays but the frame it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.env_server.backends.crafter.creatures import TURNS, balance
from services.env_server.backends.crafter.generation import Generator
from services.env_server.backends.crafter.player import Player
from services.env_server.backends.crafter.rendering import Painter, daylight
from services.env_server.backends.crafter.world import Layout, World

_BALANCE_EVERY = 10


@dataclass(frozen=True, slots=True)
class Stage:
    """What the games of a group share. Things farther than `reach` from the player stand still; a `length` of 0 never
    cuts an episode."""

    layout: Layout
    generator: Generator
    painter: Painter
    reach: int
    length: int


class Game:
    """Episodes of one environment: each one's world follows from the seed and the episode's number."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._seed = seed
        self._episode = 0
        self._world = World(stage.layout)
        self.player = Player(self._world, stage.generator.start)
        self._health = 0
        self._achieved = 0
        self._step = 0

    def reset(self, frame: np.ndarray) -> None:
        """Starts the next episode and draws its first frame."""
        self._episode += 1
        self._step = 0
        self._world.reset(hash((self._seed, self._episode)) % (2**31 - 1))
        self.player = Player(self._world, self._stage.generator.start)
        self._health = self.player.body.health
        self._achieved = 0
        self._stage.generator.fill(self._world)
        self._stage.painter.draw(self._world, self.player, daylight(0), frame)

    def step(self, action: int, frame: np.ndarray) -> tuple[float, bool, bool]:
        """Does an action and draws what follows; gives the reward, whether the player died, and whether time ran out.

        The reward is a tenth of the health gained, and 1 where anything was achieved for the first time.
        """
        self._step += 1
        light = daylight(self._step)
        world, player, reach = self._world, self.player, self._stage.reach
        # What the player puts down now, or a creature shoots, has its first turn in the next step.
        present = len(world.things)
        player.act(action)
        x, y = player.body.x, player.body.y
        for thing in [each for each in world.things[:present] if abs(each.x - x) + abs(each.y - y) < reach]:
            TURNS[thing.kind](world, thing, player)
        if self._step % _BALANCE_EVERY == 0:
            balance(world, player, light)
        self._stage.painter.draw(world, player, light, frame)
        health = player.body.health
        reward = (health - self._health) / 10
        self._health = health
        if (achieved := sum(player.achieved)) > self._achieved:
            self._achieved = achieved
            reward += 1.0
        return reward, health <= 0, 0 < self._stage.length <= self._step
