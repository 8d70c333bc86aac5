"""The kinds of network and space that a policy is built of, each the smallest that shows it: every test of policies and
of the algorithms that train them goes through all.
"""

from dataclasses import replace
from typing import Any

from common.types import ActionSpec, ArraySpec, EnvSpec

VECTOR = ArraySpec("obs", "<f4", (4,))
DISCRETE = ActionSpec("discrete", "<i8", (), (3,))
BOX = ActionSpec("box", "<f4", (2,), low=(-1.0, -2.0), high=(1.0, 4.0))
SWITCHES = ActionSpec("multi_binary", "<i8", (2,), (2, 2))
MULTI = ActionSpec("multi_discrete", "<i8", (1, 2), (3, 2))
MIXED = ActionSpec("tuple", "<f8", (6,), parts=(DISCRETE, BOX, SWITCHES, replace(DISCRETE, n=(2,))))
PLATE = ActionSpec("box", "<f4", (2, 2), low=(-1.0,) * 4, high=(1.0, 1.0, 1.0, 3.0))
SHAPED = ActionSpec("tuple", "<f8", (7,), parts=(PLATE, MULTI, replace(BOX, shape=(), low=(-2.0,), high=(2.0,))))
CHOICES = ActionSpec("tuple", "<i8", (3,), parts=(MULTI, DISCRETE))
MASK = ArraySpec("mask", "|b1", (3,))
PIXELS = ArraySpec("pixels", "|u1", (36, 36, 2))
KINDS: dict[str, tuple[dict[str, Any], EnvSpec]] = {
    "mlp": ({}, EnvSpec("a", (VECTOR,), DISCRETE)),
    "shared": ({"shared": True, "activation": "relu"}, EnvSpec("a", (VECTOR,), DISCRETE)),
    "normalized": ({"normalize_observations": True, "popart": True}, EnvSpec("a", (VECTOR,), DISCRETE)),
    "lstm": ({"lstm": 8, "popart": True}, EnvSpec("a", (VECTOR,), DISCRETE)),
    "gru": ({"gru": 8}, EnvSpec("a", (VECTOR,), DISCRETE)),
    "lstm apart": ({"lstm": 8, "shared": False}, EnvSpec("a", (VECTOR,), DISCRETE)),
    "told gru apart": ({"gru": 4, "shared": False, "last_action": True}, EnvSpec("a", (VECTOR,), BOX)),
    "impala": (
        {"name": "impala_resnet", "lstm": 8, "last_action": True, "last_reward": True},
        EnvSpec("a", (ArraySpec("pixels", "|u1", (2, 12, 12)),), DISCRETE),
    ),
    "told": ({"last_action": True, "last_reward": True}, EnvSpec("a", (VECTOR,), MULTI)),
    "told box": ({"last_action": True, "gru": 4}, EnvSpec("a", (VECTOR,), BOX)),
    "told mixed": ({"last_action": True}, EnvSpec("a", (VECTOR,), MIXED)),
    "told shaped": ({"last_action": True}, EnvSpec("a", (VECTOR,), SHAPED)),
    "masked": ({"action_mask": "mask"}, EnvSpec("a", (VECTOR, MASK), DISCRETE)),
    "masked lstm": ({"action_mask": "mask", "lstm": 4}, EnvSpec("a", (VECTOR, MASK), DISCRETE)),
    "masked parts": (
        {"action_mask": "mask"},
        EnvSpec("a", (VECTOR, ArraySpec("mask", "|b1", (7,))), MIXED),
    ),
    "multi_discrete": ({}, EnvSpec("a", (VECTOR,), MULTI)),
    "multi_binary": ({}, EnvSpec("a", (VECTOR,), SWITCHES)),
    "choices": ({}, EnvSpec("a", (VECTOR,), CHOICES)),
    "mixed": ({}, EnvSpec("a", (VECTOR,), MIXED)),
    "mixed beta": ({"distribution": "beta"}, EnvSpec("a", (VECTOR,), MIXED)),
    "normal": ({}, EnvSpec("a", (VECTOR,), BOX)),
    "normal state": ({"sigma": "state", "log_std_init": -1.0}, EnvSpec("a", (VECTOR,), BOX)),
    "tanh": ({"distribution": "tanh_normal"}, EnvSpec("a", (VECTOR,), BOX)),
    "tanh state": ({"distribution": "tanh_normal", "sigma": "state"}, EnvSpec("a", (VECTOR,), BOX)),
    "beta": ({"distribution": "beta"}, EnvSpec("a", (VECTOR,), BOX)),
    "popart": ({"popart": True}, EnvSpec("a", (VECTOR,), DISCRETE)),
    "encoders": (
        {"name": "nature_cnn", "encoders": {"goal": {"hidden": [8]}}, "shared": True},
        EnvSpec("a", (PIXELS, VECTOR, ArraySpec("goal", "<i4", (3,)), ArraySpec("n", "<i4", ())), DISCRETE),
    ),
    "scalar": ({}, EnvSpec("a", (ArraySpec("obs", "<i8", ()),), DISCRETE)),
    "shallow_cnn": ({"name": "shallow_cnn"}, EnvSpec("a", (PIXELS,), DISCRETE)),
    "nature_cnn": (
        {"name": "nature_cnn", "shared": True},
        EnvSpec("a", (ArraySpec("o", "|u1", (2, 36, 36)),), DISCRETE),
    ),
    "minatar_cnn": ({"name": "minatar_cnn"}, EnvSpec("a", (ArraySpec("o", "|b1", (10, 10, 4)),), DISCRETE)),
    "dict": (
        {"name": "minatar_cnn", "lstm": 4},
        EnvSpec("a", (ArraySpec("pixels", "|u1", (10, 10, 3)), VECTOR, ArraySpec("n", "<i4", ())), DISCRETE),
    ),
}
