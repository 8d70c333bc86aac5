"""OpenSimplex noise in three dimensions at fixed points under many seeds, bit for bit as opensimplex 0.4 gives it.

Where a point lies among the lattice's vertices, and how much each weighs there, does not depend on the seed: that is
worked out once. A seed gives each vertex a gradient, and a field is gathered and summed from those. The order of every
floating-point operation is the library's, since sums are rounded by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STRETCH = -1 / 6
_SQUISH = 1 / 3
_NORM = 103
# 11 along one axis and 4 along the others: each octant's three in turn.
_GRADIENTS = np.array(
    [
        [(-1 if octant >> axis & 1 == flip else 1) * (11 if axis == long else 4) for axis, flip in enumerate((0, 1, 1))]
        for octant in (0, 1, 2, 3, 4, 5, 6, 7)
        for long in range(3)
    ],
    np.float64,
)
_LOWER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
_UPPER = ((1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
_MIDDLE = (*_LOWER[1:], *_UPPER[:3])

Vertex = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """One field's geometry: for N points, the K vertices that weigh there, in the library's order, at [K, N].

    `vertex` numbers them, `offset` [3, K, N] leads from each to the point, and `weight` is 0 where fewer weigh.
    """

    vertex: np.ndarray
    offset: np.ndarray
    weight: np.ndarray


class Fields:
    """Noise fields over points [N] each, given as (x, y, z) arrays; z may be a number."""

    def __init__(self, points: list[tuple[np.ndarray, np.ndarray, float]]) -> None:
        found = [_geometry(*field) for field in points]
        keys = [vertices[..., 0] << 16 | vertices[..., 1] << 8 | vertices[..., 2] for vertices, _, _ in found]
        unique, numbers = np.unique(np.concatenate([key.ravel() for key in keys]), return_inverse=True)
        self._x, self._y, self._z = unique >> 16, unique >> 8 & 255, unique & 255
        split = np.split(numbers, np.cumsum([key.size for key in keys])[:-1])
        self._layers = [
            _packed(part.reshape(key.shape), offset, weight)
            for part, key, (_, offset, weight) in zip(split, keys, found, strict=True)
        ]

    def under(self, seed: int) -> list[np.ndarray]:
        """Gives each field [N] float64 under a seed."""
        permutation = np.array(_permutation(seed))
        octet = permutation[(permutation[self._x] + self._y) & 255]
        gradient = _GRADIENTS.T[:, permutation[(octet + self._z) & 255] % len(_GRADIENTS)]
        return [_sum(layer, gradient) for layer in self._layers]


def _sum(layer: Layer, gradient: np.ndarray) -> np.ndarray:
    slope = gradient[0].take(layer.vertex)
    slope *= layer.offset[0]
    for axis in (1, 2):
        term = gradient[axis].take(layer.vertex)
        term *= layer.offset[axis]
        slope += term
    slope *= layer.weight
    # Row by row: a sum over the axis may pair its terms otherwise.
    total: np.ndarray = slope[0]
    for row in slope[1:]:
        total += row
    total /= _NORM
    return total


def _permutation(seed: int) -> list[int]:
    """Shuffles 0 to 255 by the library's 64-bit congruential generator."""
    state = seed
    source = list(range(256))
    shuffled = [0] * 256
    for draw in range(259):
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        if draw >= 3:
            left = 258 - draw
            signed = state - (state >> 63 << 64)
            chosen = (signed + 31) % (left + 1)
            shuffled[left] = source[chosen]
            source[chosen] = source[left]
    return shuffled


def _geometry(x: np.ndarray, y: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives for points [N] the vertices [N, 8, 3] modulo 256, the offsets from them [N, 8, 3] and weights [N, 8]."""
    point = np.stack([x, y, np.full_like(x, z)], axis=-1)
    stretch = (x + y + z) * _STRETCH
    stretched = point + stretch[:, None]
    base = np.floor(stretched)
    squish = (base[:, 0] + base[:, 1] + base[:, 2]) * _SQUISH
    origin = point - (base + squish[:, None])
    case = _case(*(stretched - base).T)
    first, last = _FIRST[case], _LAST[case]
    # The squish of whole steps comes between the two parts, as the library rounds it.
    shift = (first + last).sum(axis=-1, keepdims=True) * _SQUISH
    offset = origin[:, None, :] - first - shift - last
    dx, dy, dz = np.moveaxis(offset, -1, 0)
    attenuation = 2 - dx * dx - dy * dy - dz * dz
    square = attenuation * attenuation
    weight = np.where(_USED[case] & (attenuation > 0), square * square, 0.0)
    vertices = (base[:, None, :].astype(np.int64) + first + last) & 255
    return vertices, offset, weight


def _packed(vertex: np.ndarray, offset: np.ndarray, weight: np.ndarray) -> Layer:
    """Moves what weighs to the front, in its order, and drops what never does."""
    order = np.argsort(weight == 0, axis=1, kind="stable")[:, : int((weight != 0).sum(axis=1).max())]
    chosen = np.take_along_axis(offset, order[..., None], axis=1)
    return Layer(
        np.ascontiguousarray(np.take_along_axis(vertex, order, axis=1).T),
        np.ascontiguousarray(chosen.transpose(2, 1, 0)),
        np.ascontiguousarray(np.take_along_axis(weight, order, axis=1).T),
    )


def _case(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Gives which of `_cases` a point is, from its place [N] in its rhombohedron's own coordinates.

    Points are bits: 1, 2 and 4 stand for a step along x, y and z.
    """
    total = x + y + z
    # In the tetrahedron at the origin: the nearest two of its three other vertices.
    swap_b, swap_a = (x >= y) & (z > y), (x < y) & (z > x)
    a, b = np.where(swap_a, 4, 1), np.where(swap_b, 4, 2)
    near_a, near_b = np.where(swap_a, z, x), np.where(swap_b, z, y)
    rest = 1 - total
    lower = np.where((rest > near_a) | (rest > near_b), np.where(near_b > near_a, b, a), a | b)
    # In the one at the opposite corner, likewise.
    swap_b, swap_a = (x <= y) & (z < y), (x > y) & (z < x)
    a, b = np.where(swap_a, 3, 6), np.where(swap_b, 3, 5)
    near_a, near_b = np.where(swap_a, z, x), np.where(swap_b, z, y)
    rest = 3 - total
    upper = np.where((rest < near_a) | (rest < near_b), np.where(near_b < near_a, b, a), a & b)
    middle = _middle_case(x + y, x + z, y + z)
    return np.where(total <= 1, lower, np.where(total >= 2, 8 + upper, 16 + middle))


def _middle_case(xy: np.ndarray, xz: np.ndarray, yz: np.ndarray) -> np.ndarray:
    """Gives the case in the octahedron between: its nearest two vertices, of three opposite pairs."""
    score_a, score_b, score_c = (np.where(pair > 1, pair - 1, 1 - pair) for pair in (xy, xz, yz))
    third = np.where(yz > 1, 6, 1)
    a = np.where((score_a <= score_b) & (score_a < score_c), third, np.where(xy > 1, 3, 4))
    b = np.where((score_a > score_b) & (score_b < score_c), third, np.where(xz > 1, 5, 2))
    far_a, far_b = (np.isin(point, (3, 5, 6)) for point in (a, b))
    same = np.where(far_a, a & b, a | b)
    mixed = 8 * np.where(far_a, a, b) + np.where(far_a, b, a)
    return np.where(far_a == far_b, same, mixed)


def _cases() -> dict[int, list[tuple[Vertex, Vertex]]]:
    """Gives each case's vertices in the order they are summed, each in two parts, of which the second is subtracted
    last. The final two lie outside the cell."""
    cases: dict[int, list[tuple[Vertex, Vertex]]] = {}
    none: Vertex = (0, 0, 0)

    def add(case: int, corners: tuple[Vertex, ...], *extra: tuple[Vertex, Vertex]) -> None:
        cases[case] = [*((corner, none) for corner in corners), *extra]

    one: dict[int, list[Vertex]] = {
        1: [(1, -1, 0), (1, 0, -1)],
        2: [(-1, 1, 0), (0, 1, -1)],
        4: [(-1, 0, 1), (0, -1, 1)],
    }
    two: dict[int, Vertex] = {1: (2, 0, 0), 2: (0, 2, 0), 4: (0, 0, 2)}
    corner: dict[int, Vertex] = {bits: (bits & 1, bits >> 1 & 1, bits >> 2) for bits in range(8)}
    minus: dict[int, Vertex] = {3: (1, 1, -1), 5: (1, -1, 1), 6: (-1, 1, 1)}
    for bits in (1, 2, 4):
        add(bits, _LOWER, *((vertex, none) for vertex in one[bits]))
        add(8 + bits, _UPPER, (corner[bits], none), (two[bits], none))
        add(16 + bits, _MIDDLE, (corner[7], none), (two[bits], none))
    for bits in (3, 5, 6):
        add(bits, _LOWER, (corner[bits], none), (minus[bits], none))
        add(16 + bits, _MIDDLE, (corner[0], none), (minus[bits], none))
        for other in (1, 2, 4):
            add(16 + 8 * bits + other, _MIDDLE, (minus[bits], none), (none, two[other]))
    add(8 + 3, _UPPER, ((2, 1, 0), none), ((1, 1, 0), (0, 1, 0)))
    add(8 + 5, _UPPER, ((2, 0, 1), none), ((1, 0, 2), none))
    add(8 + 6, _UPPER, ((0, 1, 1), (0, 1, 0)), ((0, 1, 2), none))
    return cases


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives `_cases` as arrays: both parts [cases, 8, 3], and which are used [cases, 8]."""
    cases = _cases()
    parts = np.zeros((2, max(cases) + 1, 8, 3))
    used = np.zeros(parts.shape[1:3], np.bool_)
    for case, vertices in cases.items():
        used[case, : len(vertices)] = True
        for at, pair in enumerate(vertices):
            parts[:, case, at] = pair
    return parts[0].astype(np.int64), parts[1].astype(np.int64), used


_FIRST, _LAST, _USED = _tables()
