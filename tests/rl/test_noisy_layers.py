import torch

from common.rl.noisy_layers import Dense, factorised


def test_factorised_noise_on_literals() -> None:
    assert factorised(torch.tensor([4.0, -9.0, 0.0])).tolist() == [2.0, -3.0, 0.0]


def test_a_noisy_layer_is_one_whose_every_weight_has_its_own_noise() -> None:
    layer = Dense(2, 3, sigma=0.5)
    assert layer.spread is not None
    torch.nn.init.normal_(layer.spread.weight)
    x, noise = torch.randn(4, 2), torch.randn(4, 5)
    found = layer(x, noise)
    for n in range(4):
        into, out = noise[n, :2], noise[n, 2:]
        weight = layer.linear.weight + layer.spread.weight * torch.outer(out, into)
        bias = layer.linear.bias + layer.spread.bias * out
        torch.testing.assert_close(found[n], weight @ x[n] + bias)


def test_one_row_of_noise_serves_a_whole_batch() -> None:
    layer, x, noise = Dense(2, 3, sigma=0.5), torch.randn(4, 2), torch.randn(1, 5)
    torch.testing.assert_close(layer(x, noise), layer(x, noise.expand(4, 5)))


def test_without_noise_it_is_its_mean() -> None:
    layer, x = Dense(2, 3, sigma=0.5), torch.randn(4, 2)
    assert torch.equal(layer(x, None), layer.linear(x))
    plain = Dense(2, 3, sigma=0.0)
    assert plain.noise == 0
    assert plain.spread is None


def test_the_noise_begins_at_sigma_over_the_root_of_the_inputs() -> None:
    layer = Dense(4, 3, sigma=0.5)
    assert layer.spread is not None
    assert layer.noise == 7
    assert torch.equal(layer.spread.weight, torch.full((3, 4), 0.25))
    assert torch.equal(layer.spread.bias, torch.full((3,), 0.25))
