import math

import pytest
import torch

from common.rl.ops.normalize import Moments, ObservationNormalizer, PopArt


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


def head(weight: float, bias: float) -> torch.nn.Linear:
    linear = torch.nn.Linear(1, 1)
    with torch.no_grad():
        linear.weight.fill_(weight)
        linear.bias.fill_(bias)
    return linear


def test_popart_gives_targets_their_mean_and_std() -> None:
    popart = PopArt()
    popart.fold(torch.tensor([[1.0, 5.0]]), None, head(1.0, 0.0))
    # mean 3, std 2
    assert popart.normalized(torch.tensor([1.0, 3.0, 7.0])).tolist() == pytest.approx([-1.0, 0.0, 2.0])
    assert popart.raw(torch.tensor([-1.0, 0.0, 2.0])).tolist() == pytest.approx([1.0, 3.0, 7.0])
    popart.fold(torch.tensor([[11.0]]), None, head(1.0, 0.0))
    # the second update weighs 4/5: mean 9.4, mean square 13/5 + 121·4/5
    assert popart.normalized(torch.tensor(9.4 + math.sqrt(99.4 - 9.4**2))).item() == pytest.approx(1.0)


def test_popart_keeps_what_the_head_says() -> None:
    popart, value = PopArt(), head(0.7, -0.3)
    x = torch.tensor([[-2.0], [0.5], [3.0]])
    for targets in ([[1.0, 5.0]], [[400.0, -200.0]], [[0.1, 0.2]]):
        before = popart.raw(value(x))
        popart.fold(torch.tensor(targets), None, value)
        torch.testing.assert_close(popart.raw(value(x)), before, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(value(x), before)


def test_popart_takes_no_notice_of_which_column_a_target_is_in() -> None:
    one, other = PopArt(), PopArt()
    targets = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    one.fold(targets, None, head(1.0, 0.0))
    other.fold(targets[:, torch.tensor([3, 0, 5, 1, 4, 2])], None, head(1.0, 0.0))
    torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_popart_leaves_out_what_does_not_count() -> None:
    popart, value = PopArt(), head(1.0, 0.0)
    popart.fold(torch.tensor([[math.inf, 2.0]]), torch.tensor([[False, False]]), value)
    assert (value.weight.item(), popart.updates.item()) == (1.0, 0.0)
    popart.fold(torch.tensor([[1.0, math.nan, 5.0]]), torch.tensor([[True, False, True]]), value)
    assert popart.mean.item() == 3.0
    assert value.weight.item() == pytest.approx(0.5)
