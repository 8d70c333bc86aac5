"""EnvPool with two threads, random actions and no policy, steps per second: `envpool_peer.py ENV SECONDS [SETTING]`."""

import json
import sys
import time

import envpool
import numpy as np

NAMES = {"CartPole-v1": "CartPole-v1", "HalfCheetah-v5": "HalfCheetah-v4", "ALE/Pong-v5": "Pong-v5"}
# name: environments, and how many of them one recv waits for
SETTINGS = {
    "all of 64": (64, 64),
    "32 of 64": (64, 32),
    "all of 1024": (1024, 1024),
    "512 of 1024": (1024, 512),
    "all of 16": (16, 16),
    "8 of 16": (16, 8),
}


def measure(env_id: str, seconds: float, setting: str) -> float:
    envs, batch = SETTINGS[setting]
    pool = envpool.make_gymnasium(NAMES[env_id], num_envs=envs, batch_size=batch, num_threads=2)
    actions = np.stack([pool.action_space.sample() for _ in range(batch)])
    pool.async_reset()
    steps, began, counted = 0, time.perf_counter(), 0.0
    while counted < seconds:
        info = pool.recv()[-1]
        pool.send(actions, info["env_id"])
        passed = time.perf_counter() - began
        if passed < 0.2 * seconds and not counted:
            continue  # the warm-up
        if not counted:
            began, passed, steps = time.perf_counter(), 1e-9, 0
        counted = passed
        # The step after an episode's end resets, and is no decision.
        steps += int(np.count_nonzero(info["elapsed_step"]))
    pool.close()
    return steps / counted


if __name__ == "__main__":
    most = 64 if sys.argv[1].startswith("ALE/") else 1024  # a thousand emulators take minutes to start
    chosen = sys.argv[3:] or [name for name, (envs, _) in SETTINGS.items() if envs <= most]
    print(json.dumps({name: measure(sys.argv[1], float(sys.argv[2]), name) for name in chosen}))
