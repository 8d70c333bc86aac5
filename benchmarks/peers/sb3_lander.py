"""Stable-Baselines3's A2C on LunarLander-v3 with RL Baselines3 Zoo's settings: `sb3_lander.py SEED`.

Run by `benchmarks.lander` in a virtual environment of its own. Prints mean and standard deviation of 100 greedy
episodes as JSON.
"""

import json
import sys

import torch
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

ENV, ENVS, STEPS, EPISODES = "LunarLander-v3", 8, 200_000, 100


def rate(left: float) -> float:
    return 8.3e-4 * left


if __name__ == "__main__":
    torch.set_num_threads(1)
    seed = int(sys.argv[1])
    options = {"gamma": 0.995, "n_steps": 5, "learning_rate": rate, "ent_coef": 1e-5}
    model = A2C("MlpPolicy", make_vec_env(ENV, n_envs=ENVS, seed=seed), seed=seed, device="cpu", **options)
    model.learn(STEPS)
    played = evaluate_policy(model, make_vec_env(ENV, n_envs=ENVS, seed=1000 + seed), n_eval_episodes=EPISODES)
    print(json.dumps(played))
