import torch
from torch import nn

from common.rl.algorithms.base import FlatOptimizer, OptimizerConfig, flatten
from common.rl.target import Target


def test_a_target_begins_as_the_network_is_and_shares_nothing_with_it() -> None:
    network = nn.Linear(2, 1)
    target = Target(network)
    assert torch.equal(target.network.weight, network.weight)
    before = network.weight.detach().clone()
    target.flat.add_(1.0)
    assert torch.equal(network.weight, before)
    assert torch.equal(target.network.weight, before + 1.0)
    assert not any(p.requires_grad for p in target.network.parameters())


def test_a_target_follows_all_the_way_or_a_share_of_it() -> None:
    network = nn.Linear(1, 1)
    flat = flatten(list(network.parameters()))
    target = Target(network)
    flat.copy_(torch.tensor([8.0, 4.0]))
    target.flat.zero_()
    target.follow(flat, 0.25)
    assert target.network.weight.item() == 2.0
    assert target.network.bias.item() == 1.0
    target.follow(flat, 1.0)
    assert torch.equal(target.flat, flat)
    flat.zero_()
    assert target.network.weight.item() == 8.0


def test_what_is_not_trained_is_copied_and_not_followed() -> None:
    network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    optimizer, target = FlatOptimizer(OptimizerConfig(), network), Target(network)
    assert optimizer.flat.numel() == target.flat.numel() == 3
    target.follow(optimizer.flat + 1.0, 1.0)
    assert torch.equal(target.network[0].weight, network[0].weight)
    assert torch.equal(target.network[1].weight, network[1].weight + 1.0)
