"""torchrl's buffers, transitions per second, observations of 17: `torchrl_peer.py replay SECONDS [SETTING]`.

A setting that this version cannot run with this torch is given as 0, and its error on stderr.
"""

import json
import sys
import time

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer, TensorDictReplayBuffer

CAPACITY, BATCH, INSERT = 1_000_000, 256, 1024
SHAPES = {"obs": 17, "act": 6, "rew": 1, "next_obs": 17, "done": 1}


def filled(kind, **options):
    buffer = kind(storage=LazyTensorStorage(CAPACITY), batch_size=BATCH, **options)
    rows = TensorDict({name: torch.rand(INSERT, size) for name, size in SHAPES.items()}, [INSERT])
    for _ in range(CAPACITY // INSERT + 1):
        buffer.extend(rows)
    return buffer, rows


def draw():
    buffer, _ = filled(TensorDictReplayBuffer)
    return lambda: len(buffer.sample())


def prioritized():
    buffer, _ = filled(TensorDictPrioritizedReplayBuffer, alpha=0.6, beta=0.4)
    errors = torch.rand(BATCH)

    def turn() -> int:
        batch = buffer.sample()
        buffer.update_priority(batch["index"], errors)
        return BATCH

    return turn


def insert():
    buffer, rows = filled(TensorDictReplayBuffer)

    def turn() -> int:
        buffer.extend(rows)
        return INSERT

    return turn


SETTINGS = {"uniform draw": draw, "insert": insert, "prioritized draw and update": prioritized}


def measure(seconds: float, setting: str) -> float:
    try:
        turn = SETTINGS[setting]()
    except (ImportError, OSError, AttributeError, NameError, RuntimeError) as error:
        print(f"{setting}: {error}", file=sys.stderr)
        return 0.0
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += turn()
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[3:] or list(SETTINGS)
    print(json.dumps({name: measure(float(sys.argv[2]), name) for name in chosen}))
