"""The numbers of Crafter's game: materials, things, items, actions, achievements and recipes, in the package's order.

Knows no world and no picture. Materials and items are numbered as the package numbers them, since frames and chances
depend on it; a test holds these tables against the package's own.
"""

from __future__ import annotations

from dataclasses import dataclass

# Material 0 lies outside the area.
MATERIALS = (
    "outside", "water", "grass", "stone", "path", "sand", "tree", "lava", "coal", "iron", "diamond", "table", "furnace",
)  # fmt: skip
OUTSIDE, WATER, GRASS, STONE, PATH, SAND, TREE, LAVA, COAL, IRON, DIAMOND, TABLE, FURNACE = range(13)

WALKABLE = frozenset({GRASS, PATH, SAND})
PLAYER_WALKABLE = WALKABLE | {LAVA}
ARROW_WALKABLE = WALKABLE | {WATER, LAVA}

# Health comes first in the package's list of items; here it belongs to the player's body.
ITEMS = (
    "food", "drink", "energy", "sapling", "wood", "stone", "coal", "iron", "diamond", "wood_pickaxe", "stone_pickaxe",
    "iron_pickaxe", "wood_sword", "stone_sword", "iron_sword",
)  # fmt: skip
FOOD, DRINK, ENERGY = range(3)
MOST = 9

ACTIONS = (
    "noop", "move_left", "move_right", "move_up", "move_down", "do", "sleep", "place_stone", "place_table",
    "place_furnace", "place_plant", "make_wood_pickaxe", "make_stone_pickaxe", "make_iron_pickaxe", "make_wood_sword",
    "make_stone_sword", "make_iron_sword",
)  # fmt: skip
NOOP, MOVE_LEFT, _, _, MOVE_DOWN, DO, SLEEP = range(7)

ACHIEVEMENTS = (
    "collect_coal", "collect_diamond", "collect_drink", "collect_iron", "collect_sapling", "collect_stone",
    "collect_wood", "defeat_skeleton", "defeat_zombie", "eat_cow", "eat_plant", "make_iron_pickaxe", "make_iron_sword",
    "make_stone_pickaxe", "make_stone_sword", "make_wood_pickaxe", "make_wood_sword", "place_furnace", "place_plant",
    "place_stone", "place_table", "wake_up",
)  # fmt: skip
DEFEAT_SKELETON, DEFEAT_ZOMBIE, EAT_COW, EAT_PLANT = range(7, 11)
WAKE_UP = 21

# Directions 0 to 3 are left, right, up, down, as the moves are; the fifth stays where it is.
LEFT, RIGHT, UP, DOWN, NOWHERE = range(5)
DX = (-1, 1, 0, 0, 0)
DY = (0, 0, -1, 1, 0)
OPPOSITE = (RIGHT, LEFT, DOWN, UP, NOWHERE)

Amounts = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Collect:
    """What `do` takes from a material: the item it needs one of, what is left, the item gained and its chance."""

    needs: int | None
    leaves: int
    gives: int
    achievement: int
    chance: float = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """What an action puts before the player: a material, or a plant where that is None; (item, amount) pairs used."""

    uses: Amounts
    where: frozenset[int]
    material: int | None
    achievement: int


@dataclass(frozen=True, slots=True)
class Make:
    """What an action makes one of beside the materials of `nearby`; (item, amount) pairs used."""

    uses: Amounts
    nearby: frozenset[int]
    gives: int
    achievement: int


def _collect(gives: str, leaves: int, needs: str = "", chance: float = 1.0) -> Collect:
    item = ITEMS.index(gives)
    return Collect(ITEMS.index(needs) if needs else None, leaves, item, ACHIEVEMENTS.index(f"collect_{gives}"), chance)


def _uses(**uses: int) -> Amounts:
    return tuple((ITEMS.index(item), amount) for item, amount in uses.items())


def _place(name: str, where: frozenset[int], **uses: int) -> tuple[int, Place]:
    material = MATERIALS.index(name) if name in MATERIALS else None
    place = Place(_uses(**uses), where, material, ACHIEVEMENTS.index(f"place_{name}"))
    return ACTIONS.index(f"place_{name}"), place


def _make(name: str, nearby: frozenset[int], **uses: int) -> tuple[int, Make]:
    make = Make(_uses(**uses), nearby, ITEMS.index(name), ACHIEVEMENTS.index(f"make_{name}"))
    return ACTIONS.index(f"make_{name}"), make


COLLECT = {
    TREE: _collect("wood", leaves=GRASS),
    STONE: _collect("stone", leaves=PATH, needs="wood_pickaxe"),
    COAL: _collect("coal", leaves=PATH, needs="wood_pickaxe"),
    IRON: _collect("iron", leaves=PATH, needs="stone_pickaxe"),
    DIAMOND: _collect("diamond", leaves=PATH, needs="iron_pickaxe"),
    WATER: _collect("drink", leaves=WATER),
    GRASS: _collect("sapling", leaves=GRASS, chance=0.1),
}
PLACE = dict(
    [
        _place("stone", WALKABLE | {WATER, LAVA}, stone=1),
        _place("table", WALKABLE, wood=2),
        _place("furnace", WALKABLE, stone=4),
        _place("plant", frozenset({GRASS}), sapling=1),
    ]
)
_AT_TABLE = frozenset({TABLE})
_AT_FURNACE = frozenset({TABLE, FURNACE})
MAKE = dict(
    [
        _make("wood_pickaxe", _AT_TABLE, wood=1),
        _make("stone_pickaxe", _AT_TABLE, wood=1, stone=1),
        _make("iron_pickaxe", _AT_FURNACE, wood=1, coal=1, iron=1),
        _make("wood_sword", _AT_TABLE, wood=1),
        _make("stone_sword", _AT_TABLE, wood=1, stone=1),
        _make("iron_sword", _AT_FURNACE, wood=1, coal=1, iron=1),
    ]
)
# The damage a blow does with the best sword at hand, by the item's number.
DAMAGE = tuple((ITEMS.index(f"{metal}_sword"), damage) for metal, damage in (("iron", 5), ("stone", 3), ("wood", 2)))
