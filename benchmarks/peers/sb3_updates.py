"""Stable-Baselines3's SAC and DQN, gradient steps per second on random data: `sb3_updates.py SECONDS`."""

import json
import sys
import time

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.logger import configure

STEPS, AT_ONCE = 10_000, 4


class Random(gymnasium.Env):
    """Spaces, and random observations."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def filled(model):
    model.set_logger(configure(None, []))
    model._current_progress_remaining = 1.0
    env, buffer = model.env, model.replay_buffer
    seen = env.reset()
    for _ in range(STEPS):
        action = np.array([env.action_space.sample()])
        buffer.add(seen, seen, action.reshape(1, -1), np.zeros(1), np.zeros(1), [{}])
    return model


def measure(model, batch, seconds):
    model.train(AT_ONCE, batch)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        model.train(AT_ONCE, batch)
        done += AT_ONCE
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    torch.set_num_threads(1)
    seconds = float(sys.argv[1])
    vector = Random(Box(-1, 1, (17,), np.float32), Box(-1, 1, (6,), np.float32))
    pixels = Random(Box(0, 255, (4, 84, 84), np.uint8), Discrete(6))
    sac = filled(SAC("MlpPolicy", vector, buffer_size=STEPS, device="cpu"))
    dqn = filled(DQN("CnnPolicy", pixels, buffer_size=STEPS, device="cpu"))
    print(json.dumps({"SAC": measure(sac, 256, seconds), "DQN, Nature CNN": measure(dqn, 32, seconds)}))
