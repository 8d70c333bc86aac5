from collections.abc import Callable

import pytest
import torch

from common.rl.algorithms.a2c import A2C
from common.rl.algorithms.base import OptimizerConfig
from common.rl.batch import to_batch
from common.rl.ops.returns import discounted_returns, next_values
from common.types import Arrays, EnvSpec

Record = Callable[..., Arrays]


@pytest.mark.parametrize("popart", [False, True])
def test_the_losses_are_those_of_the_return_and_of_what_it_exceeds_the_value_by(
    popart: bool, cartpole: EnvSpec, record: Record
) -> None:
    policy = A2C.make_actor({}, {"popart": popart}, cartpole, 0)
    a2c = A2C({"discount": 0.9}, OptimizerConfig(), policy, 0)
    # With PopArt, the first batch brings statistics, by which the second's losses are measured.
    a2c.learn(to_batch(record(policy, cartpole, seed=1), torch.device("cpu")), 0.0)
    batch = to_batch(record(policy, cartpole, seed=2), torch.device("cpu"))
    outputs = policy.unroll(batch)
    value = outputs.values.detach()
    after = next_values(value, batch.final_index, policy.values_of_final(outputs, batch))
    returns = discounted_returns(batch.reward, after, batch.terminated, batch.truncated, None, 0.9)
    std = (policy.popart.raw(torch.tensor(1.0)) - policy.popart.raw(torch.tensor(0.0))).item() if policy.popart else 1.0
    log_prob = outputs.distribution.log_prob(batch.action)
    metrics = a2c.learn(batch, 0.0)
    advantage = returns - value[:-1]
    assert metrics["policy_loss"] == pytest.approx(-(log_prob * advantage).mean().item() / std, rel=1e-4)
    assert metrics["value_loss"] == pytest.approx(advantage.square().mean().item() / std**2, rel=1e-4)
