from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from common.rl.algorithms.base import OptimizerConfig
from common.rl.algorithms.ppo import PPO
from common.rl.batch import to_batch
from common.rl.noise import uniforms
from common.rl.policy import build_policy
from common.types import Arrays, EnvSpec

CPU = torch.device("cpu")
Record = Callable[..., Arrays]


def learn(arrays: Arrays, spec: EnvSpec, progress: float = 0.0, lr: float = 1e-3, **algorithm: Any) -> dict[str, float]:
    policy = build_policy({}, spec, 0)
    ppo = PPO(algorithm, OptimizerConfig(lr=lr, lr_schedule="linear"), policy, 0)
    return ppo.learn(to_batch(arrays, CPU), progress)


@pytest.fixture
def arrays(cartpole: EnvSpec, record: Record) -> Arrays:
    return record(build_policy({}, cartpole, 0), cartpole, 16, 8)


def test_the_first_step_on_fresh_data_has_ratio_one(arrays: Arrays, cartpole: EnvSpec) -> None:
    metrics = learn(arrays, cartpole, epochs=1, minibatches=1)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["clip_fraction"] == 0.0
    # advantages are normalised, so their mean under ratio one is zero
    assert metrics["policy_loss"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["entropy"] == pytest.approx(np.log(2.0), abs=1e-3)
    assert metrics["gradient_steps"] == 1.0


def test_a_kl_target_ends_the_update_after_the_epoch_that_passed_it(arrays: Arrays, cartpole: EnvSpec) -> None:
    assert learn(arrays, cartpole, lr=0.05, epochs=5, minibatches=2, target_kl=1e-3)["gradient_steps"] == 2.0
    assert learn(arrays, cartpole, lr=1e-6, epochs=5, minibatches=2, target_kl=1e-3)["gradient_steps"] == 10.0


def test_schedules_follow_the_progress_of_the_job(arrays: Arrays, cartpole: EnvSpec) -> None:
    assert learn(arrays, cartpole, 0.75)["lr"] == pytest.approx(2.5e-4)
    wide = learn(arrays, cartpole, 0.9, lr=0.05, clip_schedule="constant")
    narrow = learn(arrays, cartpole, 0.9, lr=0.05, clip_schedule="linear")
    assert wide["clip_fraction"] < narrow["clip_fraction"]


def test_invalid_steps_have_no_influence(arrays: Arrays, cartpole: EnvSpec) -> None:
    valid = np.ones((16, 8), bool)
    valid[3] = False
    arrays["valid"] = valid
    other = {name: x.copy() for name, x in arrays.items()}
    other["action"][3] = 1 - other["action"][3]
    other["reward"][3] = 1e6
    other["extras.log_prob"][3] = -50.0
    assert learn(arrays, cartpole) == learn(other, cartpole)


def test_a_value_clip_changes_the_value_loss(arrays: Arrays, cartpole: EnvSpec) -> None:
    assert learn(arrays, cartpole, value_clip=1e-3)["value_loss"] > learn(arrays, cartpole)["value_loss"]


def test_columns_may_go_between_batches(cartpole: EnvSpec, record: Record) -> None:
    policy = build_policy({"lstm": 8}, cartpole, 0)
    ppo = PPO({"normalize_returns": True, "minibatches": 4, "epochs": 1}, OptimizerConfig(), policy, 0)
    steps = [ppo.learn(to_batch(record(policy, cartpole, 4, b), CPU), 0.0)["gradient_steps"] for b in (8, 2, 5)]
    assert steps == [4.0, 2.0, 4.0]


def collect(
    env: gymnasium.vector.VectorEnv[Any, Any, Any], act: Any, now: dict[str, Any], steps: int, returns: list[float]
) -> Arrays:
    """Runs a vector environment whose resets take a step of their own, which is marked invalid."""
    rows: list[dict[str, Any]] = []
    for _ in range(steps):
        action, log_prob = act(now)
        obs, reward, terminated, truncated, _ = env.step(action)
        row = {"observation.obs": now["obs"], "first": now["first"], "action": action, "extras.log_prob": log_prob}
        flags = {"terminated": terminated.copy(), "truncated": truncated.copy(), "valid": ~now["ended"]}
        rows.append({**row, "reward": reward.astype(np.float32), **flags})
        now["running"] += reward
        ended = terminated | truncated
        returns.extend(now["running"][ended].tolist())
        now["running"][ended] = 0.0
        now.update(obs=obs, first=now["ended"], ended=ended, t=now["t"] + 1)
    rows.append({**rows[-1], "observation.obs": now["obs"], "first": now["first"]})
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: x if name in ("observation.obs", "first") else x[:-1] for name, x in arrays.items()}


def test_ppo_learns_cartpole(cartpole: EnvSpec) -> None:
    envs = 32
    env = gymnasium.make_vec("CartPole-v1", num_envs=envs, vectorization_mode="vector_entry_point")
    obs, _ = env.reset(seed=0)
    policy = build_policy({}, cartpole, 0)
    algorithm = {"discount": 0.98, "lam": 0.9, "epochs": 6, "minibatches": 8}
    ppo = PPO(algorithm, OptimizerConfig(lr=2e-3, lr_schedule="linear"), policy, 0)
    now = {"obs": obs, "first": np.ones(envs, bool), "ended": np.zeros(envs, bool), "running": np.zeros(envs), "t": 0}

    def act(now: dict[str, Any]) -> tuple[Any, Any]:
        u = torch.from_numpy(uniforms(0, (0, envs), now["t"], 1))
        with torch.inference_mode():
            action, extras, _ = policy.act({"obs": torch.from_numpy(now["obs"])}, torch.from_numpy(now["first"]), {}, u)
        return action.numpy(), extras["log_prob"].numpy()

    returns: list[float] = []
    for update in range(16):
        ppo.learn(to_batch(collect(env, act, now, 64, returns), CPU), update / 50)
    env.close()
    assert np.mean(returns[-30:]) > 195.0
