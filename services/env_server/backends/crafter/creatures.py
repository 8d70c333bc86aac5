"""What cows, zombies, skeletons, arrows and plants do in a step, and how each chunk's creatures come and go.

Knows no picture. Everything is drawn and done in the package's order, which its chances depend on; a creature removed
at the start of its own turn still takes that turn, as it does there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from services.env_server.backends.crafter.player import Player
from services.env_server.backends.crafter.rules import (
    ARROW_WALKABLE,
    DOWN,
    FURNACE,
    GRASS,
    LEFT,
    NOWHERE,
    OPPOSITE,
    PATH,
    RIGHT,
    TABLE,
    UP,
    WALKABLE,
)
from services.env_server.backends.crafter.world import Kind, Thing, World, look

_COW = look("cow")
_ZOMBIE = look("zombie")
_SKELETON = look("skeleton")
_ARROWS = tuple(look(f"arrow-{side}") for side in ("left", "right", "up", "down"))
_RIPE = look("plant-ripe")

_RIPE_AFTER = 300


def cow() -> Thing:
    return Thing(Kind.COW, _COW, health=3)


def zombie() -> Thing:
    return Thing(Kind.ZOMBIE, _ZOMBIE, health=5)


def skeleton() -> Thing:
    return Thing(Kind.SKELETON, _SKELETON, health=3)


def _toward(thing: Thing, target: Thing, long_axis: bool) -> int:
    dx = target.x - thing.x
    dy = target.y - thing.y
    wide = abs(dx) > abs(dy)
    if wide == long_axis:
        return RIGHT if dx > 0 else LEFT if dx else NOWHERE
    return DOWN if dy > 0 else UP if dy else NOWHERE


def _distance(thing: Thing, other: Thing) -> int:
    return abs(other.x - thing.x) + abs(other.y - thing.y)


def _cow_turn(world: World, thing: Thing, player: Player) -> None:
    if thing.health <= 0:
        world.remove(thing)
    if world.uniform() < 0.5:
        world.move(thing, world.below(4), WALKABLE)


def _zombie_turn(world: World, thing: Thing, player: Player) -> None:
    if thing.health <= 0:
        world.remove(thing)
    body = player.body
    if _distance(thing, body) <= 8 and world.uniform() < 0.9:
        world.move(thing, _toward(thing, body, world.uniform() < 0.8), WALKABLE)
    else:
        world.move(thing, world.below(4), WALKABLE)
    if _distance(thing, body) <= 1:
        if thing.clock:
            thing.clock -= 1
        else:
            body.hurt(7 if player.sleeping else 2)
            thing.clock = 5


def _skeleton_turn(world: World, thing: Thing, player: Player) -> None:
    if thing.health <= 0:
        world.remove(thing)
    thing.clock = max(0, thing.clock - 1)
    body = player.body
    far = _distance(thing, body)
    if far <= 3 and world.move(thing, OPPOSITE[_toward(thing, body, world.uniform() < 0.6)], WALKABLE):
        return
    if far <= 5 and world.uniform() < 0.5:
        _shoot(world, thing, _toward(thing, body, True))
    elif far <= 8 and world.uniform() < 0.3:
        world.move(thing, _toward(thing, body, world.uniform() < 0.6), WALKABLE)
    elif world.uniform() < 0.2:
        world.move(thing, world.below(4), WALKABLE)


def _shoot(world: World, thing: Thing, direction: int) -> None:
    if thing.clock > 0 or direction == NOWHERE:
        return
    cell = thing.cell + world.layout.steps[direction]
    if world.standing[cell] is None and world.materials[cell] in ARROW_WALKABLE:
        world.add(Thing(Kind.ARROW, _ARROWS[direction], health=0, direction=direction), cell)
        thing.clock = 4


def _arrow_turn(world: World, thing: Thing, player: Player) -> None:
    target = thing.cell + world.layout.steps[thing.direction]
    hit = world.standing[target]
    if hit is not None:
        hit.hurt(2)
        world.remove(thing)
    elif not world.move(thing, thing.direction, ARROW_WALKABLE):
        world.remove(thing)
        if world.materials[target] in (TABLE, FURNACE):
            world.put(target, PATH)


def _plant_turn(world: World, thing: Thing, player: Player) -> None:
    thing.clock += 1
    if thing.clock == _RIPE_AFTER + 1:
        world.show(thing, _RIPE)
    for step in world.layout.steps[:4]:
        beside = world.standing[thing.cell + step]
        if beside is not None and beside.kind in _GRAZERS:
            thing.hurt(1)
            break
    if thing.health <= 0:
        world.remove(thing)


_GRAZERS = frozenset({Kind.COW, Kind.ZOMBIE, Kind.SKELETON})
TURNS: dict[Kind, Callable[[World, Thing, Player], None]] = {
    Kind.COW: _cow_turn,
    Kind.ZOMBIE: _zombie_turn,
    Kind.SKELETON: _skeleton_turn,
    Kind.ARROW: _arrow_turn,
    Kind.PLANT: _plant_turn,
}


@dataclass(frozen=True, slots=True)
class _Habitat:
    """Where a kind spawns, how far from the player at least, and how likely it comes or goes."""

    kind: Kind
    make: Callable[[], Thing]
    material: int
    room: int
    spawn_distance: int
    despawn_distance: int
    spawn: float
    despawn: float

    def bounds(self, light: float) -> tuple[int, int]:
        """Gives the numbers of creatures below which a chunk with room gains one, and above which it loses one."""
        if self.kind is Kind.ZOMBIE:
            return int(3.5 - 3 * light), int(3.5 - 3 * light)
        return 1, 2 if self.kind is Kind.SKELETON else int(1.5 + light)


_HABITATS = (
    _Habitat(Kind.ZOMBIE, zombie, GRASS, 50, 6, 0, 0.3, 0.4),
    _Habitat(Kind.SKELETON, skeleton, PATH, 6, 7, 7, 0.1, 0.1),
    _Habitat(Kind.COW, cow, GRASS, 30, 5, 5, 0.01, 0.1),
)


def balance(world: World, player: Player, light: float) -> None:
    """Lets one creature of each kind come to or go from each chunk, by the room there and the daylight."""
    plans = [(habitat, *habitat.bounds(light)) for habitat in _HABITATS]
    for chunk, things in world.chunks.items():
        kinds = [thing.kind for thing in things]
        for habitat, fewest, most in plans:
            count = kinds.count(habitat.kind)
            if count < fewest and world.space[habitat.material][chunk] >= habitat.room:
                if world.uniform() < habitat.spawn:
                    _spawn(world, player, habitat, chunk)
            elif count > most and world.uniform() < habitat.despawn:
                there = [thing for thing in things if thing.kind is habitat.kind]
                leaving = there[world.below(count)]
                if _distance(leaving, player.body) >= habitat.despawn_distance:
                    world.remove(leaving)


def _spawn(world: World, player: Player, habitat: _Habitat, chunk: int) -> None:
    columns, rows = world.layout.chunks[chunk]
    xs, ys = np.nonzero(world.material_map[columns, rows] == habitat.material)
    chosen = world.below(len(xs))
    x = int(xs[chosen]) + columns.start
    y = int(ys[chosen]) + rows.start
    cell = x * world.layout.stride + y
    far = abs(player.body.x - x) + abs(player.body.y - y)
    if world.standing[cell] is None and far >= habitat.spawn_distance:
        world.add(habitat.make(), cell)
