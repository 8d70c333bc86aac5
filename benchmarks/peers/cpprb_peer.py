"""cpprb's buffers, transitions per second, observations of 17: `cpprb_peer.py replay SECONDS [SETTING]`."""

import json
import sys
import time

import numpy as np
from cpprb import PrioritizedReplayBuffer, ReplayBuffer

CAPACITY, BATCH, INSERT = 1_000_000, 256, 1024
SHAPES = {"obs": {"shape": 17}, "act": {"shape": 6}, "rew": {}, "next_obs": {"shape": 17}, "done": {}}


def filled(kind):
    buffer = kind(CAPACITY, SHAPES)
    rows = {name: np.random.rand(INSERT, about.get("shape", 1)).astype(np.float32) for name, about in SHAPES.items()}
    for _ in range(CAPACITY // INSERT + 1):
        buffer.add(**rows)
    return buffer, rows


def draw():
    buffer, _ = filled(ReplayBuffer)
    return lambda: len(buffer.sample(BATCH)["rew"])


def prioritized():
    buffer, _ = filled(PrioritizedReplayBuffer)
    priorities = np.random.rand(BATCH)

    def turn() -> int:
        batch = buffer.sample(BATCH, beta=0.4)
        buffer.update_priorities(batch["indexes"], priorities)
        return BATCH

    return turn


def insert():
    buffer, rows = filled(ReplayBuffer)

    def turn() -> int:
        buffer.add(**rows)
        return INSERT

    return turn


SETTINGS = {"uniform draw": draw, "prioritized draw and update": prioritized, "insert": insert}


def measure(seconds: float, setting: str) -> float:
    turn, done = SETTINGS[setting](), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += turn()
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    chosen = sys.argv[3:] or list(SETTINGS)
    print(json.dumps({name: measure(float(sys.argv[2]), name) for name in chosen}))
