"""Sample Factory's APPO at one epoch, frames trained on per second: `sample_factory_peer.py ENV SECONDS [SETTING]`.

Its own reports are read: the frames that its learner has counted, twice, at least `SECONDS` apart. The learner counts
whole batches, so a slow job is watched for longer.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import gymnasium
import numpy as np

WARM_S = 10.0
BATCHES = 20  # at least as many in a figure, so that one more or less is 5 % of it
SWEPT = 5  # in those that only choose a setting
REPORT = re.compile(r"Total num frames: (\d+)")
NAMES = {"CartPole-v1": "CartPole-v1", "HalfCheetah-v5": "HalfCheetah-v4", "ALE/Pong-v5": "ALE/Pong-v5"}

_WORKERS = "--num_workers={workers} --num_envs_per_worker={envs} --worker_num_splits={splits} --batch_size={batch}"
# name: serial mode, asynchronous, workers, environments per worker, splits
SETTINGS = {
    "serial": (True, False, 1, 64, 1),
    "serial, asynchronous": (True, True, 1, 64, 2),
    "processes, 1 worker": (False, True, 1, 64, 2),
    "processes, 2 workers": (False, True, 2, 32, 2),
    "processes, 2 workers, synchronous": (False, False, 2, 32, 2),
}
# The same, where Gymnasium has a vector environment of its own: each of the environments is one of AGENTS.
VECTOR_SETTINGS = {
    "vector, serial": (True, False, 1, 1, 1),
    "vector, 1 worker": (False, True, 1, 2, 2),
    "vector, 2 workers": (False, True, 2, 2, 2),
}
VECTORS, AGENTS = ("CartPole-v1",), 512
_COMMON = (
    "--algo=APPO --device=cpu --num_epochs=1 --rollout=32 --normalize_input=False "
    "--normalize_returns=False --use_rnn=False --save_every_sec=100000 --with_wandb=False --num_policies=1 "
    "--decorrelate_experience_max_seconds=0 --restart_behavior=overwrite --experiment=x"
)
_VECTOR = "--encoder_mlp_layers 64 64 --nonlinearity=tanh"
_PIXELS = "--encoder_conv_architecture=convnet_atari --encoder_conv_mlp_layers 512"


class Vector(gymnasium.Env):
    """Gymnasium's vector environment as Sample Factory wants one: an environment of many agents, in arrays."""

    is_multiagent, num_agents = True, AGENTS

    def __init__(self, env_id, render_mode=None):
        self.env = gymnasium.make_vec(env_id, num_envs=AGENTS, vectorization_mode="custom")
        self.observation_space = self.env.single_observation_space
        self.action_space = self.env.single_action_space
        self.render_mode = render_mode

    def reset(self, **options):
        return self.env.reset(**options)

    def step(self, actions):
        observations, *rest, infos = self.env.step(np.asarray(actions).reshape(-1))
        return np.ascontiguousarray(observations, np.float32), *rest, infos


def make(full_env_name, cfg=None, env_config=None, render_mode=None):
    """Makes one environment, as Sample Factory asks for it; pixels get the usual treatment of Atari."""
    if cfg is not None and cfg.batched_sampling:
        return Vector(full_env_name, render_mode)
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


def words(env_id: str, setting: str, folder: str) -> str:
    """Gives the command line of one job."""
    vector = setting in VECTOR_SETTINGS
    serial, asynchronous, workers, envs, splits = (VECTOR_SETTINGS if vector else SETTINGS)[setting]
    pixels = env_id.startswith("ALE/")
    if pixels:
        envs = max(splits, envs // 4)
    batch = 32 * AGENTS if vector else 1024 if pixels else 4096
    sampled = _WORKERS.format(workers=workers, envs=envs, splits=splits, batch=batch)
    how = f"--serial_mode={serial} --async_rl={asynchronous} --batched_sampling={vector} --train_dir={folder}"
    return f"--env={env_id} {_COMMON} {_PIXELS if pixels else _VECTOR} {sampled} {how}"


def measure(env_id: str, seconds: float, setting: str, batches: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        given = words(env_id, setting, folder).split()
        job = subprocess.Popen(
            [sys.executable, __file__, "--train", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        batch = next(int(word.partition("=")[2]) for word in given if word.startswith("--batch_size="))
        try:
            return rate(job.stdout, seconds, batches * batch)
        finally:
            os.killpg(job.pid, signal.SIGKILL)  # its own end can take longer than the job
            job.wait()


def rate(lines, seconds: float, least: int) -> float:
    """Gives frames per second between two reports, the first of them warm, the second with `least` frames more."""
    begun, first, said = None, None, []
    for line in lines:
        said.append(line)
        found = REPORT.search(line)
        if not found or not int(found[1]):
            continue
        now, frames = time.monotonic(), int(found[1])
        begun = begun or now
        if now < begun + WARM_S:
            continue
        first = first or (now, frames)
        if now >= first[0] + seconds and frames >= first[1] + least:
            return (frames - first[1]) / (now - first[0])
    raise SystemExit("no figure:\n" + "".join(said[-30:]))


if __name__ == "__main__":
    if sys.argv[1] == "--train":
        train(next(word for word in sys.argv if word.startswith("--env=")).removeprefix("--env="), sys.argv[2:])
    chosen = sys.argv[3:] or [*SETTINGS, *(VECTOR_SETTINGS if sys.argv[1] in VECTORS else ())]
    batches = BATCHES if sys.argv[3:] else SWEPT
    print(json.dumps({name: measure(sys.argv[1], float(sys.argv[2]), name, batches) for name in chosen}))
