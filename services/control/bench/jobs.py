"""What is measured for which environment: the network of the headline figures, and settings known to be good here.

Environments that are not listed get the network that suits their observations and moderate settings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from common.config import CONFIGS, Config, load
from services.control.presets import kind_of, preset_overrides

FOLDER = CONFIGS / "bench"  # one overlay per environment that `headrace bench train` measures


@dataclass(frozen=True, slots=True)
class Known:
    """Settings of one environment: its `own`, in every job; `tuned` ones of the pipeline, where {cores} stands for
    their number; n of the limit."""

    own: tuple[str, ...]
    tuned: tuple[str, ...]
    limit_envs: int


_MLP = ("network.name=mlp",)
_CNN = ("network.name=nature_cnn", "network.shared=true")
KNOWN = {
    "CartPole-v1": Known(
        (*_MLP, "network.hidden=[16,16]"),
        ("env.envs=8192", "rollout.unroll=32", "inference.max_batch=8192"),
        2048,
    ),
    "HalfCheetah-v5": Known(
        (*_MLP, "network.hidden=[64,64]"),
        ("env.servers={cores}", "env.envs=512", "rollout.unroll=32"),
        256,
    ),
    "ALE/Pong-v5": Known((*_CNN, "network.bf16=true"), ("env.servers={cores}", "env.envs=64", "rollout.unroll=16"), 32),
    "CrafterReward-v1": Known(_CNN, ("env.servers={cores}", "env.envs=128", "rollout.unroll=16"), 128),
}


def collect_job(env_id: str, overrides: tuple[str, ...] = ()) -> tuple[Config, Config, Config]:
    """Gives the default job of an environment, the known good one, and the one that the limit is measured with."""
    known = KNOWN.get(env_id) or _unknown(env_id, overrides)
    base = (f"env.id={env_id}", *known.own, "replay.max_policy_lag=1", "learner.batch=1")
    tuned = tuple(text.format(cores=os.cpu_count() or 1) for text in known.tuned)
    limit = (f"env.envs={known.limit_envs}",)
    default, best, bound = (load(None, (*base, *extra, *overrides)) for extra in ((), tuned, limit))
    return default, best, bound


def train_job(env_id: str, overrides: tuple[str, ...] = ()) -> tuple[Config, Config]:
    """Gives asynchronous PPO of one epoch with default sizes, and the overlay in configs/bench where there is one."""
    path = FOLDER / f"{env_id.rpartition('/')[2].lower()}_ppo.yaml"
    one_epoch = ("algorithm.name=ppo", "algorithm.epochs=1", "replay.max_policy_lag=4", "learner.batch=2")
    known = KNOWN.get(env_id) or _unknown(env_id, overrides)
    own = (*known.own, "network.hidden=[64,64]")
    default = load(None, (f"env.id={env_id}", *own, *one_epoch, *overrides))
    return default, load(path, overrides) if path.exists() else default


def _unknown(env_id: str, overrides: tuple[str, ...]) -> Known:
    from services.env_server.backends import make_backend

    config = load(None, (f"env.id={env_id}", *(text for text in overrides if text.startswith("env."))))
    backend = make_backend(config.env, 1, at_least=True)
    network: tuple[str, ...] = _CNN if kind_of(backend.spec) == "pixels" else (*_MLP, "network.hidden=[64,64]")
    agents = backend.num_envs

    def whole(envs: int) -> int:
        return -(-envs // agents) * agents

    own = (*network, *preset_overrides(backend.spec), f"env.envs={whole(config.env.envs)}")
    backend.close()
    return Known(own, ("env.servers={cores}", f"env.envs={whole(256)}", "rollout.unroll=32"), whole(32))
