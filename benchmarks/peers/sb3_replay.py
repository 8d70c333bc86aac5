"""Stable-Baselines3's buffer, transitions per second; observations of 17, actions of 6: `sb3_replay.py replay 5`."""

import json
import sys
import time

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.buffers import ReplayBuffer

CAPACITY, BATCH, ENVS = 1_000_000, 256, 64


def settings():
    torch.set_num_threads(1)
    buffer = ReplayBuffer(CAPACITY, Box(-1, 1, (17,)), Box(-1, 1, (6,)), n_envs=ENVS)
    seen, action = np.zeros((ENVS, 17), np.float32), np.zeros((ENVS, 6), np.float32)
    step = (seen, seen, action, np.zeros(ENVS), np.zeros(ENVS), [{} for _ in range(ENVS)])
    for _ in range(CAPACITY // ENVS + 1):
        buffer.add(*step)
    return {
        "uniform draw": (lambda: buffer.sample(BATCH), BATCH),
        "insert": (lambda: buffer.add(*step), ENVS),
    }


def measure(seconds, turn, items):
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        turn()
        done += items
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    print(json.dumps({name: measure(float(sys.argv[2]), *work) for name, work in settings().items()}))
