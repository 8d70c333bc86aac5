"""Stable-Baselines3's PPO on CartPole-v1 with the RL-zoo settings, stopped at a 100-episode training mean of 475.

Run by `benchmarks.solve` in a virtual environment of its own. Prints the Unix time of the goal and the steps taken.
"""

import json
import sys
import time

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

GOAL, STEPS = 475.0, 500_000


class Goal(BaseCallback):
    def _on_step(self) -> bool:
        episodes = self.model.ep_info_buffer
        return not (len(episodes) == 100 and np.mean([episode["r"] for episode in episodes]) >= GOAL)


def falling(start: float):
    # The zoo's job is 100k steps long and its schedules end there; a job that is not solved by then goes on at 1 %.
    return lambda left: start * max(0.01, 1.0 - (1.0 - left) * STEPS / 100_000)


seed = int(sys.argv[1])
model = PPO(
    "MlpPolicy",
    make_vec_env("CartPole-v1", n_envs=8, seed=seed),
    n_steps=32,
    batch_size=256,
    gae_lambda=0.8,
    gamma=0.98,
    n_epochs=20,
    ent_coef=0.0,
    learning_rate=falling(0.001),
    clip_range=falling(0.2),
    seed=seed,
    device="cpu",
)
model.learn(STEPS, callback=Goal())
print(json.dumps({"at": time.time(), "steps": model.num_timesteps}))
