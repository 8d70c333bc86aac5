"""Stable-Baselines3's SAC or TD3 on HalfCheetah-v5: `sb3_curve.py ALGORITHM SEED STEPS CSV`.

Run by `benchmarks.beside` in a virtual environment of its own. Writes, once a thousand steps, the steps, the seconds
since it began to learn and the mean return of the last 100 training episodes.
"""

import csv
import sys
import time

import numpy as np
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

ENV, EVERY, STARTS = "HalfCheetah-v5", 1_000, 10_000
ALGORITHMS = {"sac": SAC, "td3": TD3}


class Curve(BaseCallback):
    def __init__(self, path):
        super().__init__()
        self._path, self._began = path, time.monotonic()
        self._write("w", ("steps", "seconds", "episode_return"))

    def _on_step(self) -> bool:
        episodes = self.model.ep_info_buffer
        if self.num_timesteps % EVERY == 0 and episodes:
            mean = np.mean([episode["r"] for episode in episodes])
            self._write("a", (self.num_timesteps, f"{time.monotonic() - self._began:.1f}", f"{mean:.2f}"))
        return True

    def _write(self, mode, row):
        with open(self._path, mode, newline="") as file:
            csv.writer(file).writerow(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    algorithm, seed, steps, path = sys.argv[1:]
    # As in configs/halfcheetah_sac.yaml and _td3.yaml: noise of a tenth, two layers of 256, all else is the default.
    options = {
        "learning_starts": STARTS,
        "policy_kwargs": {"net_arch": [256, 256]},
        "batch_size": 256,
        "learning_rate": 3e-4,
    }
    if algorithm == "td3":
        options |= {
            "action_noise": NormalActionNoise(np.zeros(6), 0.1 * np.ones(6)),
            "train_freq": 1,
            "gradient_steps": 1,
        }
    model = ALGORITHMS[algorithm]("MlpPolicy", ENV, seed=int(seed), device="cpu", **options)
    model.learn(int(steps), callback=Curve(path))
