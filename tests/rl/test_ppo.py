from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import ConfigError
from common.rl.actor import Seen
from common.rl.algorithms.base import OptimizerConfig
from common.rl.algorithms.ppo import APPO, PPO
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


def test_the_rate_is_steered_by_the_kl(arrays: Arrays, cartpole: EnvSpec) -> None:
    policy = build_policy({}, cartpole, 0)
    for target, following in ((1e-9, [1.0, 2 / 3, 4 / 9]), (1e3, [1.0, 1.5, 2.25])):
        ppo = PPO({"adaptive_kl": target, "epochs": 1}, OptimizerConfig(lr=1e-3), policy, 0)
        rates = [ppo.learn(to_batch(arrays, CPU), 0.0)["lr"] for _ in range(3)]
        assert rates == pytest.approx([1e-3 * x for x in following])


def test_a_steered_rate_has_bounds_and_survives_a_resume(arrays: Arrays, cartpole: EnvSpec) -> None:
    settings = {"adaptive_kl": 1e3, "epochs": 1, "minibatches": 2}
    ppo, resumed = (PPO(settings, OptimizerConfig(lr=1e-6), build_policy({}, cartpole, 0), 0) for _ in range(2))
    for _ in range(8):
        ppo.learn(to_batch(arrays, CPU), 0.0)
    resumed.load_state_dict(ppo.state_dict())
    assert resumed.learn(to_batch(arrays, CPU), 0.0)["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"adaptive_kl": 0.01, "minibatches": 1}, r"algorithm\.adaptive_kl=0\.01 .*or algorithm\.minibatches above 1"),
        ({"target_kl": 0.02}, r"algorithm\.target_kl=0\.02 .*set algorithm\.epochs above 1"),
    ],
)
def test_a_key_of_the_kl_is_refused_where_an_update_sees_none(
    settings: dict[str, Any], text: str, arrays: Arrays, cartpole: EnvSpec
) -> None:
    with pytest.raises(ConfigError, match=text):
        learn(arrays, cartpole, epochs=1, **settings)
    assert learn(arrays, cartpole, epochs=2, **settings)["gradient_steps"] >= 1.0


def test_truly_ppo_stays_nearer_than_the_bare_surrogate(arrays: Arrays, cartpole: EnvSpec) -> None:
    moved = {}
    for radius in (1e-4, 1e3):
        rollback = {"rollback": {"radius": radius, "slope": 20.0}, "epochs": 5}
        policy = PPO.make_actor(rollback, {}, cartpole, 0)
        batch = {**arrays, "extras.parameters": np.full((16, 8, 2), np.log(0.5), np.float32)}
        moved[radius] = PPO(rollback, OptimizerConfig(lr=0.01), policy, 0).learn(to_batch(batch, CPU), 0.0)["kl"]
    assert 5 * moved[1e-4] < moved[1e3]


def test_appo_clips_a_falling_ratio_at_one_over_its_bound(arrays: Arrays, cartpole: EnvSpec) -> None:
    # All ratios are 0.82: within 1 ± 0.2, but below 1/1.2.
    shares = {}
    for kind in (PPO, APPO):
        policy = build_policy({}, cartpole, 0)
        log_prob = policy.unroll(to_batch(arrays, CPU)).distribution.log_prob(torch.from_numpy(arrays["action"]))
        old = (log_prob - np.log(0.82)).detach().numpy()
        learner = kind({"clip": 0.2, "epochs": 1, "minibatches": 1}, OptimizerConfig(), policy, 0)
        shares[kind] = learner.learn(to_batch({**arrays, "extras.log_prob": old}, CPU), 0.0)["clip_fraction"]
    assert shares == {PPO: 0.0, APPO: 1.0}


def test_appo_takes_its_targets_from_vtrace_when_told_to(arrays: Arrays, cartpole: EnvSpec) -> None:
    # Of data that its own policy made, both estimators are one at λ 1; of another's they are not.
    def explained(vtrace: bool, shift: float) -> float:
        policy = build_policy({}, cartpole, 0)
        log_prob = policy.unroll(to_batch(arrays, CPU)).distribution.log_prob(torch.from_numpy(arrays["action"]))
        batch = {**arrays, "extras.log_prob": (log_prob + shift).detach().numpy()}
        appo = APPO({"vtrace": vtrace, "lam": 1.0}, OptimizerConfig(), policy, 0)
        return appo.learn(to_batch(batch, CPU), 0.0)["explained_variance"]

    assert explained(True, 0.0) == pytest.approx(explained(False, 0.0), abs=1e-5)
    assert abs(explained(True, 2.0) - explained(False, 2.0)) > 0.01


@pytest.mark.parametrize("network", [{}, {"shared": True}, {"last_action": True, "popart": True}])
def test_the_behaviours_values_are_the_newest_until_weights_change(
    network: dict[str, Any], cartpole: EnvSpec, record: Record
) -> None:
    arrays = record(build_policy(network, cartpole, 0, values=True), cartpole, 16, 8)
    assert arrays["extras.value"].shape == (16, 8)

    def metrics(of: str, seed: int, arrays: Arrays = arrays) -> dict[str, float]:
        policy = PPO.make_actor({"values": of}, network, cartpole, seed)
        return PPO({"values": of, "epochs": 1}, OptimizerConfig(), policy, 0).learn(to_batch(arrays, CPU), 0.0)

    assert metrics("behaviour", 0) == pytest.approx(metrics("newest", 0), abs=1e-6)
    away, nearby = (metrics(of, 1)["explained_variance"] for of in ("behaviour", "newest"))
    assert away != pytest.approx(nearby, abs=1e-5)
    raised = {**arrays, "extras.value": arrays["extras.value"] + 1.0}
    assert metrics("behaviour", 0, raised)["value_loss"] != pytest.approx(metrics("newest", 0)["value_loss"], rel=0.01)


@pytest.mark.parametrize(
    ("kind", "algorithm", "network", "said"),
    [(PPO, {}, {"lstm": 4}, "no state"), (APPO, {"vtrace": True}, {}, "saves nothing")],
)
def test_the_behaviours_values_are_refused_where_they_do_not_do(
    kind: type[PPO] | type[APPO],
    algorithm: dict[str, Any],
    network: dict[str, Any],
    said: str,
    cartpole: EnvSpec,
) -> None:
    chosen = {**algorithm, "values": "behaviour"}
    with pytest.raises(ConfigError, match=said):
        kind(chosen, OptimizerConfig(), kind.make_actor(chosen, network, cartpole, 0), 0)


def test_invalid_steps_have_no_influence(arrays: Arrays, cartpole: EnvSpec) -> None:
    valid = np.ones((16, 8), bool)
    valid[3] = False
    arrays["valid"] = valid
    other = {name: x.copy() for name, x in arrays.items()}
    other["action"][3] = 1 - other["action"][3]
    other["reward"][3] = 1e6
    other["extras.log_prob"][3] = -50.0
    assert learn(arrays, cartpole) == learn(other, cartpole)


@pytest.mark.parametrize("network", [{}, {"lstm": 4}])
@pytest.mark.parametrize("log_prob", [-200.0, -np.inf, np.nan])
def test_a_step_that_was_none_may_hold_any_ratio(
    network: dict[str, Any], log_prob: float, cartpole: EnvSpec, record: Record
) -> None:
    arrays = record(build_policy(network, cartpole, 0), cartpole, 16, 8)
    arrays["valid"] = np.ones((16, 8), bool)
    arrays["valid"][2, 1] = False
    found = []
    for odd in (arrays["extras.log_prob"][2, 1], log_prob):
        arrays["extras.log_prob"][2, 1] = odd
        ppo = PPO({"epochs": 1, "minibatches": 2}, OptimizerConfig(), build_policy(network, cartpole, 0), 0)
        found.append(ppo.learn(to_batch(arrays, CPU), 0.0))
    assert found[0] == found[1]


def test_losses_are_means_over_steps_however_few_of_them_a_minibatch_has(cartpole: EnvSpec, record: Record) -> None:
    network = {"lstm": 4}
    arrays = record(build_policy(network, cartpole, 0), cartpole, 16, 4)
    arrays["valid"] = np.arange(16)[:, None] < np.array([16, 4, 1, 0])
    whole, parts = (
        PPO(
            {"epochs": 1, "minibatches": n, "normalize_advantages": False},
            OptimizerConfig(lr=1e-12),
            build_policy(network, cartpole, 0),
            0,
        ).learn(to_batch(arrays, CPU), 0.0)
        for n in (1, 4)
    )
    for name in ("policy_loss", "value_loss", "entropy"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5), name


def test_a_value_clip_changes_the_value_loss(arrays: Arrays, cartpole: EnvSpec) -> None:
    assert learn(arrays, cartpole, value_clip=1e-3)["value_loss"] > learn(arrays, cartpole)["value_loss"]


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device, to learn how large its answer is."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "nonzero" in str(func)
        return func(*args, **(kwargs or {}))


def test_a_recurrent_policys_gradient_steps_wait_for_no_device(cartpole: EnvSpec, record: Record) -> None:
    policy = build_policy({"lstm": 4}, cartpole, 0)
    batch = to_batch(record(policy, cartpole, 16, 8), CPU)
    assert batch.final_index is not None
    with Waits() as waits:
        metrics = PPO({"epochs": 2, "minibatches": 4}, OptimizerConfig(), policy, 0).learn(batch, 0.0)
    assert (metrics["gradient_steps"], waits.count) == (8.0, 0)


def test_columns_may_go_between_batches(cartpole: EnvSpec, record: Record) -> None:
    policy = build_policy({"lstm": 8, "popart": True}, cartpole, 0)
    ppo = PPO({"minibatches": 4, "epochs": 1}, OptimizerConfig(), policy, 0)
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
        observation, first = {"obs": torch.from_numpy(now["obs"])}, torch.from_numpy(now["first"])
        with torch.inference_mode():
            acted = policy.act(Seen(observation, first, torch.zeros(envs), {}, u, torch.arange(envs)))
        return acted.action.numpy(), acted.extras["log_prob"].numpy()

    returns: list[float] = []
    for update in range(16):
        ppo.learn(to_batch(collect(env, act, now, 64, returns), CPU), update / 50)
    env.close()
    assert np.mean(returns[-30:]) > 195.0
