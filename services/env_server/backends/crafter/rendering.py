"""The frames of Crafter: pictures of cells and items made once, put together by number, lit by the time of day.

Owns no world and no chances of its own: the noise of the night is drawn from the world's. Every rounding is that of the
package, which draws the whole view and then darkens it; by day the light of a pixel depends on its own colour alone, so
only the pictures in view are lit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import ceil

import numpy as np

from services.env_server.backends.crafter.player import Player
from services.env_server.backends.crafter.rules import ITEMS, MATERIALS, MOST
from services.env_server.backends.crafter.world import LOOKS, World

# Gives the package's texture [x, y, 3 or 4] of a name, scaled to a size.
GetTexture = Callable[[str, tuple[float, float]], np.ndarray]
Pair = tuple[int, int]

_OUTSIDE_GREY = 127
_SLOTS = ("health", *ITEMS)
# How bright red, green and blue are, in 65536ths.
_RED, _GREEN, _BLUE = np.array([19595, 38470, 7471], np.float32)


@cache
def daylight(step: int) -> float:
    """Gives the light of an episode's step, from 0 (night) to 1."""
    progress = (step / 300) % 1 + 0.3
    return float(1 - np.abs(np.cos(np.pi * progress)) ** 3)


def grid_of(view: Pair) -> Pair:
    """Gives the columns and rows of cells that a view shows above its rows of items."""
    return view[0], view[1] - ceil(len(_SLOTS) / view[0])


class Painter:
    """Draws frames [height, width, 3] of `size` (width, height) that show `view` (columns, rows), items included."""

    def __init__(self, view: Pair, size: Pair, texture: GetTexture) -> None:
        self._grid = grid_of(view)
        self._unit = (size[0] // view[0], size[1] // view[1])
        left, top = ((size[axis] - self._unit[axis] * view[axis]) // 2 for axis in (0, 1))
        middle, bottom = top + self._grid[1] * self._unit[1], top + view[1] * self._unit[1]
        columns = slice(left, left + view[0] * self._unit[0])
        self._world_part = (slice(top, middle), columns)
        self._item_part = (slice(middle, bottom), columns)
        self._cells = _cell_pictures(texture, self._unit)
        self._by_day = self._cells.astype(np.float64)
        self._by_night = np.ascontiguousarray(_dusk(self._cells.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0))
        self._items = _item_pictures(texture, self._unit, view[0])
        self._item_numbers = np.zeros((view[1] - self._grid[1], view[0]), np.intp)
        # A slot's pictures follow one another by amount; a slot for nothing shows the first, which is black.
        self._slots = np.arange(len(_SLOTS)) * (MOST + 1)
        self._vignette = _vignette(*(cells * unit for cells, unit in zip(self._grid, self._unit, strict=True)))

    def draw(self, world: World, player: Player, light: float, frame: np.ndarray) -> None:
        """Writes what the player sees and has; by night it draws noise from the world's chances."""
        columns, rows = self._grid
        x, y = player.body.x - columns // 2, player.body.y - rows // 2
        seen = (slice(x, x + columns), slice(y, y + rows))
        numbers = (world.look_map[seen] + world.material_map[seen]).T
        frame.fill(0)
        if light < 0.5:
            part = frame[self._world_part]
            self._place(part, self._cells.take(numbers, axis=0))
            planes = np.ascontiguousarray(part.transpose(2, 0, 1))
            for channel, plane in enumerate(self._night(world.random, planes, light, player.sleeping)):
                part[..., channel] = plane
        else:
            (used,) = np.bincount(numbers.ravel()).nonzero()
            lit = np.empty_like(self._cells)
            lit[used] = self._day(used, light, player.sleeping)
            self._place(frame[self._world_part], lit.take(numbers, axis=0))
        amounts = [player.body.health, *player.items]
        np.add(self._slots, amounts, out=self._item_numbers.ravel()[: len(amounts)])
        self._place(frame[self._item_part], self._items.take(self._item_numbers, axis=0))

    def _place(self, part: np.ndarray, pictures: np.ndarray) -> None:
        rows, columns, high, wide, _ = pictures.shape
        part.reshape(rows, high, columns, wide, 3)[:] = pictures.swapaxes(1, 2)

    def _day(self, used: np.ndarray, light: float, sleeping: bool) -> np.ndarray:
        lit = light * self._by_day.take(used, axis=0) + (1 - light) * self._by_night.take(used, axis=0)
        return _asleep(lit.astype(np.uint8).transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0) if sleeping else lit

    def _night(self, random: np.random.RandomState, plain: np.ndarray, light: float, sleeping: bool) -> np.ndarray:
        _, height, width = plain.shape
        mask = 2 * (0.5 - light) * self._vignette
        noisy = (1 - mask) * plain
        # Drawn once for each pixel, column by column.
        mask *= random.uniform(32, 127, (width, height)).T
        noisy += mask
        lit = light * plain
        lit += (1 - light) * _dusk(noisy.astype(np.uint8))
        return _asleep(lit.astype(np.uint8)) if sleeping else lit


# Colours come first below: [3, ...], since numpy is slow over a last axis of three.


def _dusk(pictures: np.ndarray) -> np.ndarray:
    return _tinted(_greyed(pictures, 0.4), (0, 16, 64))


def _asleep(pictures: np.ndarray) -> np.ndarray:
    return _tinted(_greyed(pictures, 0.0), (0, 0, 16))


def _greyed(pictures: np.ndarray, colour: float) -> np.ndarray:
    """Gives pictures [3, ...] uint8 with a part of their colour, rounded as Pillow rounds it, in single precision."""
    mixed = pictures.astype(np.float32)
    red, green, blue = mixed
    # Integers below 2 ** 24, so exact.
    grey = np.floor((_RED * red + _GREEN * green + _BLUE * blue + np.float32(0x8000)) / np.float32(0x10000))
    mixed -= grey
    mixed *= np.float32(colour)
    mixed += grey
    return mixed.astype(np.uint8)


def _tinted(pictures: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    tinted = 0.5 * pictures
    for channel, tint in zip(tinted, colour, strict=True):
        channel += 0.5 * tint
    return tinted


def _vignette(width: int, height: int) -> np.ndarray:
    """Gives how far towards the edge a pixel [height, width] lies: 0 in the middle, near 1 in the corners."""
    xs, ys = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    vignette: np.ndarray = 1 - np.exp(-0.5 * (xs**2 + ys**2) / 0.5**2)
    return vignette


def _cell_pictures(texture: GetTexture, unit: Pair) -> np.ndarray:
    """Gives the pictures [look + material, height, width, 3] of each material, bare and with each thing on it."""
    outside = np.full((*unit, 3), _OUTSIDE_GREY, np.uint8)
    ground = np.stack([outside, *(texture(name, unit)[..., :3] for name in MATERIALS[1:])])
    covered = [_blended(ground, texture(name, unit)) for name in LOOKS]
    return np.ascontiguousarray(np.concatenate([ground, *covered]).swapaxes(1, 2))


def _item_pictures(texture: GetTexture, unit: Pair, columns: int) -> np.ndarray:
    """Gives the pictures [slot * (MOST + 1) + amount, height, width, 3] of health and the items, black for none."""
    sizes = np.array(unit)
    pictures = np.zeros((len(_SLOTS), MOST + 1, *unit, 3), np.uint8)
    for slot, name in enumerate(_SLOTS):
        corner = np.array([slot % columns, slot // columns]) * sizes
        for amount in range(1, MOST + 1):
            for drawn, offset, scale in ((name, 0.1, 0.8), (str(amount), 0.4, 0.6)):
                x, y = (corner + offset * sizes).astype(np.int32) - corner
                image = texture(drawn, tuple(scale * sizes))
                part = pictures[slot, amount, x : x + image.shape[0], y : y + image.shape[1]]
                part[:] = _blended(part, image)
    return np.ascontiguousarray(pictures.reshape(-1, *unit, 3).swapaxes(1, 2))


def _blended(ground: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """Gives pictures [..., x, y, 3] with a texture laid over them by its alpha, rounded down in single precision."""
    if texture.shape[-1] == 3:
        return np.broadcast_to(texture, ground.shape)
    scale = np.float32(255)
    alpha, colour = texture[..., 3:].astype(np.float32) / scale, texture[..., :3].astype(np.float32) / scale
    mixed = alpha * colour + (1 - alpha) * (ground.astype(np.float32) / scale)
    return (scale * mixed).astype(np.uint8)
