"""Stable-Baselines3's PPO at one epoch, steps per second of whole iterations: `sb3_peer.py ENV SECONDS [SETTING]`."""

import json
import sys
import time

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

# name: environments, their vector class, steps each per iteration, minibatch size, torch threads
SETTINGS = {
    "8 in one process": (8, DummyVecEnv, 512, 4096, 1),
    "64 in one process": (64, DummyVecEnv, 128, 8192, 1),
    "256 in one process": (256, DummyVecEnv, 64, 16384, 1),
    "256 in one process, 2 threads": (256, DummyVecEnv, 64, 16384, 2),
    "8 processes": (8, SubprocVecEnv, 512, 4096, 1),
}


class Clock(BaseCallback):
    """Stops the job after `seconds`, and notes the time and the steps where each iteration begins."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.marks: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.marks.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        # The first iteration warms up; at least one more is measured.
        return len(self.marks) < 3 or time.perf_counter() - self.marks[1][0] < self._seconds


def measure(env_id: str, seconds: float, setting: str) -> float:
    envs, vector, steps, minibatch, threads = SETTINGS[setting]
    torch.set_num_threads(threads)
    kwargs = {"start_method": "fork"} if vector is SubprocVecEnv else {}
    venv = make_vec_env(env_id, n_envs=envs, vec_env_cls=vector, vec_env_kwargs=kwargs)
    model = PPO("MlpPolicy", venv, n_steps=steps, batch_size=minibatch, n_epochs=1, device="cpu", verbose=0)
    clock = Clock(seconds)
    model.learn(1 << 40, callback=clock)
    venv.close()
    (began, before), (ended, after) = clock.marks[1], clock.marks[-1]
    return (after - before) / (ended - began)


if __name__ == "__main__":
    chosen = sys.argv[3:] or list(SETTINGS)
    print(json.dumps({name: measure(sys.argv[1], float(sys.argv[2]), name) for name in chosen}))
