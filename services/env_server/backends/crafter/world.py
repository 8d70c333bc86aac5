"""Crafter's world: the material of each cell, the things that stand on cells, their chunks, and the chances drawn.

Knows no behaviour and no picture. Coordinates carry a margin of cells outside the area on every side, so that nothing
that looks around has to ask where the area ends; a cell's number is x * stride + y. Chances are drawn exactly as
numpy's RandomState draws them for the package.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import product

import numpy as np

from services.env_server.backends.crafter.rules import DX, DY, GRASS, MATERIALS, PATH

_CHUNK = 12


class Kind(IntEnum):
    """What a thing is."""

    PLAYER = 0
    COW = 1
    ZOMBIE = 2
    SKELETON = 3
    ARROW = 4
    PLANT = 5


# Textures of things, numbered from 1. A thing's look is its texture's number times the number of materials, so that
# look + material numbers the picture of a cell.
LOOKS = (
    "player-left", "player-right", "player-up", "player-down", "player-sleep", "cow", "zombie", "skeleton",
    "arrow-left", "arrow-right", "arrow-up", "arrow-down", "plant", "plant-ripe",
)  # fmt: skip


def look(texture: str) -> int:
    """Gives the look of a thing drawn with `texture`."""
    return (LOOKS.index(texture) + 1) * len(MATERIALS)


class Thing:
    """Something that stands on a cell. `clock` counts what its kind counts: cool-down, reloading or growth."""

    __slots__ = ("cell", "clock", "direction", "health", "kind", "look", "removed", "x", "y")

    def __init__(self, kind: Kind, look: int, health: int, direction: int = 0) -> None:
        self.kind = kind
        self.look = look
        self.health = health
        self.direction = direction
        self.clock = 0
        self.removed = False
        self.x = self.y = self.cell = 0

    def hurt(self, damage: int) -> None:
        self.health = max(0, self.health - damage)


class Layout:
    """What every world of one area shares: where its cells and chunks are; a chunk has 12 by 12 cells at most."""

    def __init__(self, area: tuple[int, int], margin: int) -> None:
        self.area = area
        self.margin = margin
        self.shape = (area[0] + 2 * margin, area[1] + 2 * margin)
        self.stride = self.shape[1]
        self.inner = (slice(margin, margin + area[0]), slice(margin, margin + area[1]))
        # By direction; the last is for staying.
        self.steps = (-self.stride, self.stride, -1, 1, 0)
        columns, rows = (
            [slice(margin + start, margin + min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]
            for size in area
        )
        self.chunks = list(product(columns, rows))
        self.chunk_map = np.zeros(self.shape, np.intp)
        for number, part in enumerate(self.chunks):
            self.chunk_map[part] = number
        self.chunk_of: list[int] = self.chunk_map.ravel().tolist()


class World:
    """One world. `things` lists what lives in the order it came, the player apart; `chunks` holds, for each chunk that
    something has stood in, in the order that happened, its things in the order they came."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        bits = np.random.MT19937()
        self.random = np.random.RandomState(bits)
        self.uniform = self.random.random_sample
        self._raw = bits.random_raw
        size = layout.shape[0] * layout.stride
        self.materials = bytearray(size)
        self.looks = bytearray(size)
        self.material_map = np.frombuffer(self.materials, np.uint8).reshape(layout.shape)
        self.look_map = np.frombuffer(self.looks, np.uint8).reshape(layout.shape)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Empties the world and starts its chances from `seed`."""
        self.random.seed(seed)
        self.material_map.fill(0)
        self.look_map.fill(0)
        self.standing: list[Thing | None] = [None] * len(self.materials)
        self.things: list[Thing] = []
        self.chunks: dict[int, dict[Thing, None]] = {}
        self.space: dict[int, list[int]] = {}

    def survey(self) -> None:
        """Counts each chunk's cells of grass and of path anew, after its materials were written from outside."""
        chunk_map = self.layout.chunk_map
        for material in (GRASS, PATH):
            chunks = chunk_map[self.material_map == material]
            self.space[material] = np.bincount(chunks, minlength=len(self.layout.chunks)).tolist()

    def put(self, cell: int, material: int) -> None:
        """Changes a cell's material."""
        chunk = self.layout.chunk_of[cell]
        for changed, by in ((self.materials[cell], -1), (material, 1)):
            if changed in self.space:
                self.space[changed][chunk] += by
        self.materials[cell] = material

    def add(self, thing: Thing, cell: int) -> None:
        """Stands a thing on a free cell."""
        thing.x, thing.y = divmod(cell, self.layout.stride)
        thing.cell = cell
        self.standing[cell] = thing
        self.looks[cell] = thing.look
        self.chunks.setdefault(self.layout.chunk_of[cell], {})[thing] = None
        if thing.kind is not Kind.PLAYER:
            self.things.append(thing)

    def remove(self, thing: Thing) -> None:
        if thing.removed:
            return
        thing.removed = True
        self.standing[thing.cell] = None
        self.looks[thing.cell] = 0
        del self.chunks[self.layout.chunk_of[thing.cell]][thing]
        self.things.remove(thing)

    def move(self, thing: Thing, direction: int, walkable: frozenset[int]) -> bool:
        """Moves a thing to the next cell and says whether that was free; one that was removed stays where it was."""
        old = thing.cell
        new = old + self.layout.steps[direction]
        if self.standing[new] is not None or self.materials[new] not in walkable:
            return False
        if thing.removed:
            return True
        thing.x += DX[direction]
        thing.y += DY[direction]
        thing.cell = new
        self.standing[old] = None
        self.standing[new] = thing
        self.looks[old] = 0
        self.looks[new] = thing.look
        chunk_of = self.layout.chunk_of
        if chunk_of[old] != chunk_of[new]:
            del self.chunks[chunk_of[old]][thing]
            self.chunks.setdefault(chunk_of[new], {})[thing] = None
        return True

    def show(self, thing: Thing, look: int) -> None:
        """Changes how a thing is drawn."""
        thing.look = look
        if not thing.removed:
            self.looks[thing.cell] = look

    def below(self, bound: int) -> int:
        """Draws an integer in [0, bound) by RandomState.randint's masked rejection, which is slow to call."""
        if bound == 1:
            return 0
        mask = (1 << (bound - 1).bit_length()) - 1
        while (drawn := self._raw() & mask) >= bound:
            pass
        return drawn
