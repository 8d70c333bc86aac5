import math

import pytest
import torch

from common.rl.ops.normalize import Moments, ObservationNormalizer, RewardScaler


def test_moments_merged_in_batches_are_those_of_all_values() -> None:
    moments = Moments((2,))
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    for part in values.tensor_split([1, 10, 10, 35]):
        moments.fold(part)
    assert moments.count.item() == 50
    torch.testing.assert_close(moments.mean, values.mean(0))
    torch.testing.assert_close(moments.var, values.var(0, correction=0))


def test_moments_keep_their_precision_far_from_zero() -> None:
    moments = Moments(())
    for _ in range(100):
        moments.fold(torch.tensor([1e6, 1e6 + 2.0], dtype=torch.float64))
    assert moments.var.item() == pytest.approx(1.0, rel=1e-6)


def test_observations_are_centred_scaled_and_cut() -> None:
    normalizer = ObservationNormalizer(1)
    assert normalizer(torch.tensor([[3.0]])).item() == pytest.approx(3.0)
    normalizer.fold(torch.tensor([[1.0], [5.0]]))
    assert normalizer(torch.tensor([[5.0], [1000.0], [-1000.0]])).flatten().tolist() == pytest.approx(
        [1.0, 10.0, -10.0]
    )


def test_a_loaded_normaliser_uses_the_loaded_statistics() -> None:
    trained, fresh = ObservationNormalizer(1), ObservationNormalizer(1)
    trained.fold(torch.tensor([[1.0], [5.0]]))
    fresh.load_state_dict(trained.state_dict())
    assert fresh(torch.tensor([[5.0]])).item() == pytest.approx(1.0)


def test_rewards_are_divided_by_the_std_of_running_returns() -> None:
    scaler = RewardScaler(0.5, torch.device("cpu"))
    reward = torch.tensor([[1.0], [1.0], [4.0]])
    end = torch.tensor([[False], [True], [False]])
    # running returns 1, 1.5, 4: mean 13/6
    std = math.sqrt((1.0 + 2.25 + 16.0) / 3 - (13 / 6) ** 2)
    assert scaler.scale(reward, end, None)[:, 0].tolist() == pytest.approx([1 / std, 1 / std, 4 / std])


def test_running_returns_go_on_in_the_next_batch_and_survive_a_resume() -> None:
    scaler, resumed = RewardScaler(0.5, torch.device("cpu")), RewardScaler(0.5, torch.device("cpu"))
    one, going = torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    scaler.scale(one, going, None)
    resumed.load_state_dict(scaler.state_dict())
    # returns 1, 1 and then 1.5, 1.5: variance 1/16
    for one_of_them in (scaler, resumed):
        assert one_of_them.scale(one, going, None).tolist() == [[pytest.approx(4.0), pytest.approx(4.0)]]


def test_columns_may_come_and_go_between_batches() -> None:
    scaler = RewardScaler(0.5, torch.device("cpu"))
    for columns in (2, 3, 1):
        reward = torch.ones(4, columns)
        assert scaler.scale(reward, torch.zeros(4, columns, dtype=torch.bool), None).isfinite().all()
    assert scaler.state_dict()["returns"].shape == (1,)
    assert scaler.state_dict()["count"].item() == 24


def test_invalid_steps_leave_the_statistics_alone() -> None:
    scaler = RewardScaler(0.5, torch.device("cpu"))
    valid = torch.tensor([[True], [False]])
    scaler.scale(torch.tensor([[1.0], [99.0]]), torch.tensor([[True], [False]]), valid)
    assert scaler.state_dict()["count"].item() == 1
    assert scaler.state_dict()["mean"].item() == 1.0
