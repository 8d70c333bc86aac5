"""Gradient steps per second of SAC and DQN beside Stable-Baselines3's: one thread each, the draw from replay included.

SAC: observations of 17, actions of 6, MLPs of 256-256, batches of 256. DQN: images of 4 x 84 x 84, the Nature CNN,
batches of 32; and, where the processor has bfloat16, once more with the convolutions in it (network.bf16), beside the
same figure of the peer, which has no such setting. Both sides draw from memory of their own process and train on random
data; ours asks its table for four batches at once, as its jobs do.

    python -m benchmarks.updates [--repeat 5] [--seconds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.page import spread
from benchmarks.replay import ACTION, BATCH, OBSERVATION, ONE_THREAD, Rates, draw, fill, per_second, table_of, unroll_of
from common.allocator import keep_freed_memory
from common.config import validate
from common.rl.processor import has_bf16
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec
from services.control.bench.peers import HOME, Peer, python_of, ready
from services.learner_server.trainer import Trainer

PER_REQUEST, PIXEL_BATCH, FRAMES, CHOICES = 4, 32, 10_000, 6
SB3 = "Stable-Baselines3"
DQN, LOW = "DQN, Nature CNN", "DQN, Nature CNN, `network.bf16=true`"
BOX = ActionSpec("box", "<f4", (ACTION,), low=(-1.0,) * ACTION, high=(1.0,) * ACTION)


def _trainer(env: EnvSpec, algorithm: str, batch: int, network: dict[str, Any]) -> Trainer:
    table = {"kind": "uniform", "capacity": FRAMES, "discount": 0.99}
    learner = {"batch": batch, "per_request": PER_REQUEST}
    sections: dict[str, Any] = {"algorithm": {"name": algorithm}, "network": network, "learner": learner}
    job = {"replay": {"tables": {"experience": table}}, "stop": {"steps": FRAMES}}
    return Trainer(validate(sections | job), env, 1)


def _turn(trainer: Trainer, drawn: Callable[[], Arrays]) -> Callable[[], object]:
    def turn() -> None:
        arrays = drawn()
        arrays["relative"] = np.ones(len(arrays.pop("keys")), np.float32)
        del arrays["probabilities"]
        trainer.update_in_turn(trainer.stage(arrays, PER_REQUEST), 0.0)

    return turn


def sac_turn() -> Callable[[], object]:
    """Gives what draws and trains on PER_REQUEST batches of SAC."""
    flat = table_of(capacity=FRAMES, discount=0.99)
    fill(flat, unroll_of(64, 64), FRAMES)
    env = EnvSpec("bench", (ArraySpec("obs", "<f4", (OBSERVATION,)),), BOX)
    network = {"name": "mlp", "hidden": [256, 256], "activation": "relu"}
    return _turn(_trainer(env, "sac", BATCH, network), partial(draw, flat, PER_REQUEST * BATCH))


def _dqn_turn(**network: Any) -> Callable[[], object]:
    frames, played = table_of(20, FRAMES, discount=0.99), unroll_of(20, 8, (84, 84), stack=4)
    played["action"] = np.zeros((20, 8), np.int64)
    fill(frames, played, FRAMES)
    pixels = ArraySpec("obs", "|u1", (4, 84, 84), stack=4)
    choice = ActionSpec("discrete", "<i8", (), n=(CHOICES,))
    dqn = _trainer(EnvSpec("bench", (pixels,), choice), "dqn", PIXEL_BATCH, {"name": "nature_cnn", **network})
    return _turn(dqn, partial(draw, frames, PER_REQUEST * PIXEL_BATCH))


def ours(seconds: float) -> Rates:
    """Gives updates per second of each algorithm."""
    turns = {"SAC": sac_turn(), DQN: _dqn_turn()}
    if has_bf16(torch.device("cpu")):
        turns[LOW] = _dqn_turn(bf16=True)
    return {name: per_second(turn, PER_REQUEST, seconds) for name, turn in turns.items()}


def theirs(seconds: float) -> Rates:
    """Gives Stable-Baselines3's, if `python -m benchmarks.peers install sb3` has put it here."""
    peer = Peer("sb3", SB3)
    if not ready(peer, HOME):
        return {}
    argv = [python_of(peer, HOME), Path(__file__).parent / "peers" / "sb3_updates.py", str(seconds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=ONE_THREAD)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def report(repeat: int, seconds: float) -> str:
    """Measures in turn; gives Markdown."""
    keep_freed_memory()
    rounds = [(ours(seconds), theirs(seconds)) for _ in range(repeat)]
    lines = [f"| updates/s | Headrace | {SB3} | Headrace is |", "|---|---|---|---|"]
    for name in rounds[0][0]:
        mine = [own[name] for own, _ in rounds]
        other = [peer.get(DQN if name == LOW else name, 0.0) for _, peer in rounds]
        ratio = f"{spread([a / b for a, b in zip(mine, other, strict=True)])} x" if all(other) else "not installed"
        lines.append(f"| {name} | {statistics.median(mine):.1f} | {statistics.median(other):.1f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    arguments = parser.parse_args()
    print(report(arguments.repeat, arguments.seconds))


if __name__ == "__main__":
    main()
