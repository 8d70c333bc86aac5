"""The player of Crafter: what each action does, hunger, thirst, sleep and health, and the achievements.

Knows no creature's behaviour and no picture. Its health is its body's, where creatures hurt it.
"""

from __future__ import annotations

from services.env_server.backends.crafter.rules import (
    ACHIEVEMENTS,
    COLLECT,
    DAMAGE,
    DEFEAT_SKELETON,
    DEFEAT_ZOMBIE,
    DO,
    DOWN,
    DRINK,
    EAT_COW,
    EAT_PLANT,
    ENERGY,
    FOOD,
    ITEMS,
    LAVA,
    MAKE,
    MOST,
    MOVE_DOWN,
    MOVE_LEFT,
    NOOP,
    PLACE,
    PLAYER_WALKABLE,
    SLEEP,
    WAKE_UP,
    WATER,
    Amounts,
)
from services.env_server.backends.crafter.world import Kind, Thing, World, look

_FACING = tuple(look(f"player-{side}") for side in ("left", "right", "up", "down"))
_ASLEEP = look("player-sleep")
_PLANT = look("plant")


class Player:
    """The player in one world. `achieved` says which achievements this episode has; `items` excludes health."""

    def __init__(self, world: World, cell: int) -> None:
        self.body = Thing(Kind.PLAYER, _FACING[DOWN], MOST, direction=DOWN)
        self.items = [MOST] * 3 + [0] * (len(ITEMS) - 3)
        self.achieved = [False] * len(ACHIEVEMENTS)
        self.sleeping = False
        self._world = world
        self._last_health = MOST
        self._hunger = 0.0
        self._thirst = 0.0
        self._fatigue = 0
        self._recover = 0.0
        world.add(self.body, cell)

    def act(self, action: int) -> None:
        """Does an action, or sleeps on, and lives one step."""
        if self.sleeping:
            if self.items[ENERGY] < MOST:
                action = SLEEP
            else:
                self.sleeping = False
                self.achieved[WAKE_UP] = True
        if action != NOOP:
            self._do(action)
        self._live()
        self._heal()
        self.items = [0 if amount < 0 else MOST if amount > MOST else amount for amount in self.items]
        self.body.health = min(self.body.health, MOST)
        if self.body.health < self._last_health:
            self.sleeping = False
        self._last_health = self.body.health
        self._world.show(self.body, _ASLEEP if self.sleeping else _FACING[self.body.direction])

    def _do(self, action: int) -> None:
        world = self._world
        if MOVE_LEFT <= action <= MOVE_DOWN:
            self.body.direction = action - MOVE_LEFT
            world.move(self.body, self.body.direction, PLAYER_WALKABLE)
            if world.materials[self.body.cell] == LAVA:
                self.body.health = 0
            return
        target = self.body.cell + world.layout.steps[self.body.direction]
        thing = world.standing[target]
        if action == DO:
            if thing is None:
                self._collect(target)
            else:
                self._touch(thing)
        elif action == SLEEP:
            if self.items[ENERGY] < MOST:
                self.sleeping = True
        elif action in MAKE:
            self._make(action)
        elif thing is None:
            self._place(action, target)

    def _touch(self, thing: Thing) -> None:
        if thing.kind is Kind.PLANT:
            if thing.look != _PLANT:
                thing.clock = 0
                self._world.show(thing, _PLANT)
                self.items[FOOD] += 4
                self.achieved[EAT_PLANT] = True
            return
        if thing.kind is Kind.ARROW:
            return
        thing.hurt(next((damage for sword, damage in DAMAGE if self.items[sword]), 1))
        if thing.health > 0:
            return
        if thing.kind is Kind.ZOMBIE:
            self.achieved[DEFEAT_ZOMBIE] = True
        elif thing.kind is Kind.SKELETON:
            self.achieved[DEFEAT_SKELETON] = True
        else:
            self.items[FOOD] += 6
            self.achieved[EAT_COW] = True
            self._hunger = 0

    def _collect(self, target: int) -> None:
        material = self._world.materials[target]
        if material == WATER:
            self._thirst = 0
        rule = COLLECT.get(material)
        if rule is None or (rule.needs is not None and not self.items[rule.needs]):
            return
        self._world.put(target, rule.leaves)
        # A chance is drawn even where it is certain.
        if self._world.uniform() <= rule.chance:
            self.items[rule.gives] += 1
            self.achieved[rule.achievement] = True

    def _place(self, action: int, target: int) -> None:
        rule = PLACE[action]
        if self._world.materials[target] not in rule.where or not self._has(rule.uses):
            return
        self._use(rule.uses)
        if rule.material is None:
            self._world.add(Thing(Kind.PLANT, _PLANT, health=1), target)
        else:
            self._world.put(target, rule.material)
        self.achieved[rule.achievement] = True

    def _make(self, action: int) -> None:
        rule = MAKE[action]
        if self._has(rule.uses) and rule.nearby <= self._nearby():
            self._use(rule.uses)
            self.items[rule.gives] += 1
            self.achieved[rule.achievement] = True

    def _has(self, uses: Amounts) -> bool:
        return all(self.items[item] >= amount for item, amount in uses)

    def _use(self, uses: Amounts) -> None:
        for item, amount in uses:
            self.items[item] -= amount

    def _nearby(self) -> set[int]:
        """Gives the materials around the player; none at the area's left and upper edge, where the package's slice
        starts below zero and so is empty."""
        layout = self._world.layout
        x, y = self.body.x - layout.margin, self.body.y - layout.margin
        inner = self._world.material_map[layout.inner]
        return set(inner[x - 1 : x + 2, y - 1 : y + 2].ravel().tolist())

    def _live(self) -> None:
        pace = 0.5 if self.sleeping else 1
        self._hunger += pace
        if self._hunger > 25:
            self._hunger = 0
            self.items[FOOD] -= 1
        self._thirst += pace
        if self._thirst > 20:
            self._thirst = 0
            self.items[DRINK] -= 1
        self._fatigue = min(self._fatigue - 1, 0) if self.sleeping else self._fatigue + 1
        if self._fatigue < -10:
            self._fatigue = 0
            self.items[ENERGY] += 1
        if self._fatigue > 30:
            self._fatigue = 0
            self.items[ENERGY] -= 1

    def _heal(self) -> None:
        items = self.items
        if items[FOOD] > 0 and items[DRINK] > 0 and (items[ENERGY] > 0 or self.sleeping):
            self._recover += 2 if self.sleeping else 1
        else:
            self._recover -= 0.5 if self.sleeping else 1
        if self._recover > 25:
            self._recover = 0
            self.body.health += 1
        if self._recover < -15:
            self._recover = 0
            self.body.hurt(1)
