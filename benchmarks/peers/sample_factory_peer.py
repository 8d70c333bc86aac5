"""Sample Factory's APPO at one epoch, frames per second it reports: `sample_factory_peer.py ENV SECONDS [SETTING]`."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

WINDOW_S = 10.0  # what each of its reports covers
REPORT = re.compile(r"Fps is \(10 sec: ([\d.]+)")
NAMES = {"CartPole-v1": "CartPole-v1", "HalfCheetah-v5": "HalfCheetah-v4", "ALE/Pong-v5": "ALE/Pong-v5"}

_WORKERS = "--num_workers={workers} --num_envs_per_worker={envs} --worker_num_splits={splits}"
# name: serial mode, asynchronous, workers, environments per worker, splits
SETTINGS = {
    "serial": (True, False, 1, 64, 1),
    "serial, asynchronous": (True, True, 1, 64, 2),
    "processes, 1 worker": (False, True, 1, 64, 2),
    "processes, 2 workers": (False, True, 2, 32, 2),
    "processes, 2 workers, synchronous": (False, False, 2, 32, 2),
}
_COMMON = (
    "--algo=APPO --device=cpu --num_epochs=1 --rollout=32 --batch_size=4096 --normalize_input=False "
    "--normalize_returns=False --use_rnn=False --save_every_sec=100000 --with_wandb=False --num_policies=1 "
    "--decorrelate_experience_max_seconds=0 --restart_behavior=overwrite --experiment=x"
)
_VECTOR = "--encoder_mlp_layers 64 64 --nonlinearity=tanh"
_PIXELS = "--encoder_conv_architecture=convnet_atari --encoder_conv_mlp_layers 512"


def make(full_env_name, cfg=None, env_config=None, render_mode=None):
    """Makes one environment, as Sample Factory asks for it; pixels get the usual treatment of Atari."""
    import gymnasium
    import numpy as np

    if not full_env_name.startswith("ALE/"):
        return gymnasium.make(NAMES[full_env_name], render_mode=render_mode)
    import ale_py  # noqa: F401

    env = gymnasium.make(full_env_name, frameskip=1)
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, terminal_on_life_loss=True)
    return gymnasium.wrappers.TransformObservation(gymnasium.wrappers.FrameStack(env, 4), np.asarray)


def train(env_id: str, arguments: list[str]) -> None:
    """Runs one job; called in a process of its own, since its runner never gives everything back."""
    from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
    from sample_factory.envs.env_utils import register_env
    from sample_factory.train import run_rl

    register_env(env_id, make)
    parser, _ = parse_sf_args(arguments)
    sys.exit(run_rl(parse_full_cfg(parser, arguments)))


def measure(env_id: str, seconds: float, setting: str) -> float:
    serial, asynchronous, workers, envs, splits = SETTINGS[setting]
    if env_id.startswith("ALE/"):
        envs = max(splits, envs // 8)
    model = _PIXELS if env_id.startswith("ALE/") else _VECTOR
    with tempfile.TemporaryDirectory() as folder:
        words = f"--env={env_id} {_COMMON} {model} {_WORKERS.format(workers=workers, envs=envs, splits=splits)}"
        words += f" --serial_mode={serial} --async_rl={asynchronous} --train_dir={folder}"
        job = subprocess.Popen(
            [sys.executable, __file__, "--train", *words.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            return last_report(job.stdout, seconds)
        finally:
            os.killpg(job.pid, signal.SIGKILL)  # its own end can take longer than the job
            job.wait()


def last_report(lines, seconds: float) -> float:
    """Gives the last of the reports that cover the 10 s before them, `seconds` after the first that is warm."""
    warm, said = None, []
    for line in lines:
        said.append(line)
        found = REPORT.search(line)
        if not found:
            continue
        now = time.monotonic()
        warm = warm or now + WINDOW_S
        if now >= warm + seconds and float(found[1]) > 0:
            return float(found[1])
    raise SystemExit("no figure:\n" + "".join(said[-30:]))


if __name__ == "__main__":
    if sys.argv[1] == "--train":
        train(next(word for word in sys.argv if word.startswith("--env=")).removeprefix("--env="), sys.argv[2:])
    chosen = sys.argv[3:] or list(SETTINGS)
    print(json.dumps({name: measure(sys.argv[1], float(sys.argv[2]), name) for name in chosen}))
