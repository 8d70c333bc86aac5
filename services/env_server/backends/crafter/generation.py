"""How a new world of Crafter comes about: its terrain from noise fields and chances, and the first creatures.

Knows no rules of play. The package visits cell after cell, x by x, and draws a chance where the cell's terrain asks for
one; here the terrain of all cells comes first, and says which chances each cell asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import length_hint
from typing import TypeVar

import numpy as np

from services.env_server.backends.crafter.creatures import cow, skeleton, zombie
from services.env_server.backends.crafter.noise import Fields
from services.env_server.backends.crafter.rules import (
    COAL,
    DIAMOND,
    GRASS,
    IRON,
    LAVA,
    PATH,
    SAND,
    STONE,
    TREE,
    WALKABLE,
    WATER,
)
from services.env_server.backends.crafter.world import Layout, Thing, World

Find = TypeVar("Find")

# Each noise field's depth and size, in the order that `_terrain` takes them; the tunnels' are stretched besides.
_FIELDS = ((8, 3), (3, 15), (3, 5), (0, 15), (0, 5), (6, 7), (1, 8), (2, 6), (6, 5), (4, 9), (5, 7))
_TUNNELS = (7, 3)

# What a cell may hold beyond its terrain, in the order it is drawn for, and what the chance must exceed. A cell's wants
# are the bits of its places here.
_FINDS = ((0.85, COAL), (0.75, IRON), (0.994, DIAMOND), (0.8, TREE))
_WANT_COAL, _WANT_IRON, _WANT_DIAMOND, _WANT_TREE = 1, 2, 4, 8
_CREATURES: tuple[tuple[float, Callable[[], Thing]], ...] = ((0.985, cow), (0.993, zombie), (0.95, skeleton))
_WANT_COW, _WANT_ZOMBIE, _WANT_SKELETON = 1, 2, 4


class Generator:
    """Makes worlds of one layout, whose player starts in the middle."""

    def __init__(self, layout: Layout) -> None:
        self._inner = layout.inner
        x, y = np.indices(layout.area, np.float64).reshape(2, -1)
        middle = layout.area[0] // 2, layout.area[1] // 2
        self._distance = np.sqrt((x - middle[0]) ** 2 + (y - middle[1]) ** 2)
        depth, size = _TUNNELS
        tunnels = [(2 * x / size, y / 5 / size, depth), (x / 5 / size, 2 * y / size, depth)]
        self._fields = Fields([*((x / size, y / size, depth) for depth, size in _FIELDS), *tunnels])
        cells = np.arange(layout.shape[0] * layout.stride).reshape(layout.shape)[layout.inner]
        self._cells: list[int] = cells.ravel().tolist()
        self.start = int(cells[middle])

    def fill(self, world: World) -> None:
        """Gives a world that only the player stands in its materials and creatures."""
        materials, wants, tunnels = _terrain(self._distance, self._fields.under(world.random.randint(0, 2**31 - 1)))
        for at, material in _found(world.random, wants, _FINDS):
            materials[at] = material
        inner = world.material_map[self._inner]
        inner[:] = materials.reshape(inner.shape)
        world.survey()

        wants = ((materials == GRASS) & (self._distance > 3)) * _WANT_COW
        wants += (self._distance > 10) * _WANT_ZOMBIE + tunnels * _WANT_SKELETON
        wants *= np.isin(materials, list(WALKABLE))
        for at, make in _found(world.random, wants, _CREATURES):
            world.add(make(), self._cells[at])


def _terrain(distance: np.ndarray, fields: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives each cell's material where no chance changes it, what it wants of `_FINDS`, and where tunnels run."""
    start, water, ripple, mountain, ridge, cave, coal, iron, lava, sand, tree, across, down = fields
    start = 1 / (1 + np.exp(-(4 - distance + 2 * start)))
    water = (water + 0.15 * ripple + 0.1) - 2 * start
    mountain = (mountain + 0.3 * ridge) / 1.3 - (4 * start + 0.3 * water)

    meadow = start > 0.5
    rock = ~meadow & (mountain > 0.15)
    high = mountain > 0.3
    caves = rock & high & (cave > 0.15)
    tunnels = rock & ~caves & ((across > 0.4) | (down > 0.4))
    solid = rock & ~caves & ~tunnels
    low = ~meadow & ~rock
    beach = low & (water > 0.25) & (water <= 0.35) & (sand > -0.2)
    lake = low & ~beach & (water > 0.3)
    wood = low & ~beach & ~lake & (tree > 0)

    materials = np.full(start.shape, GRASS, np.uint8)
    materials[solid] = STONE
    materials[solid & high & (lava > 0.35)] = LAVA
    materials[caves | tunnels] = PATH
    materials[beach] = SAND
    materials[lake] = WATER
    ores = (coal > 0) * _WANT_COAL + (iron > 0.4) * _WANT_IRON + (mountain > 0.18) * _WANT_DIAMOND
    return materials, solid * ores + wood * _WANT_TREE, tunnels


def _found(
    random: np.random.RandomState, wants: np.ndarray, finds: tuple[tuple[float, Find], ...]
) -> list[tuple[int, Find]]:
    """Draws for each cell's wants in turn until one is found; gives the cells [N] with a find, and what it is.

    How many chances that takes shows only at the end, so as many as it could take are drawn, and then given back.
    """
    wanted = [[find for bit, find in enumerate(finds) if bits >> bit & 1] for bits in range(1 << len(finds))]
    where = np.flatnonzero(wants)
    bits = wants[where]
    before = random.get_state(legacy=False)
    most = int(np.bitwise_count(bits).sum())
    chances = iter(random.random_sample(most).tolist())
    found: list[tuple[int, Find]] = []
    for at, asked in zip(where.tolist(), bits.tolist(), strict=True):
        for threshold, find in wanted[asked]:
            if next(chances) > threshold:
                found.append((at, find))
                break
    random.set_state(before)
    random.random_sample(most - length_hint(chances))
    return found
