"""PufferLib's PPO in one process, on its own CartPole in C: `pufferlib_peer.py CartPole-v1 SECONDS [SETTING]`."""

import json
import os
import sys
import time

# name: torch threads, environments, steps per batch
SETTINGS = {
    "one thread, C environment": (1, 4096, 64),
    "two threads, C environment": (2, 4096, 64),
}


def measure(seconds: float, setting: str) -> float:
    threads, envs, horizon = SETTINGS[setting]
    import torch
    from pufferlib import pufferl, vector
    from pufferlib.models import Default
    from pufferlib.ocean.cartpole.cartpole import Cartpole

    torch.set_num_threads(threads)
    sys.argv = sys.argv[:1]
    config = pufferl.load_config("puffer_cartpole")["train"]
    size = envs * horizon
    changes = {"batch_size": size, "bptt_horizon": horizon, "minibatch_size": size, "max_minibatch_size": size}
    config.update(changes, device="cpu", total_timesteps=1 << 40, optimizer="adam", use_rnn=False, compile=False)
    config.update(env="puffer_cartpole", checkpoint_interval=1 << 30)
    venv = vector.make(Cartpole, env_kwargs={"num_envs": envs}, backend=vector.Serial)
    policy = Default(venv.driver_env, hidden_size=64)
    trainer = pufferl.PuffeRL(config, venv, policy)
    trainer.print_dashboard = lambda *_, **__: None
    trainer.evaluate()
    trainer.train()
    began, before = time.perf_counter(), trainer.global_step
    while time.perf_counter() - began < seconds:
        trainer.evaluate()
        trainer.train()
    rate = (trainer.global_step - before) / (time.perf_counter() - began)
    trainer.utilization.stop()  # its thread would outlive the job, and hold the process
    return rate


if __name__ == "__main__":
    _, _, length, *only = sys.argv
    if len(only) != 1:
        # Threads are counted once per process.
        import subprocess

        rates = {}
        for name in only or SETTINGS:
            run = subprocess.run([sys.executable, __file__, "CartPole-v1", length, name], stdout=subprocess.PIPE)
            rates.update(json.loads(run.stdout.splitlines()[-1]))
        print(json.dumps(rates))
    else:
        os.environ["OMP_NUM_THREADS"] = str(SETTINGS[only[0]][0])
        print(json.dumps({only[0]: measure(float(length), only[0])}))
