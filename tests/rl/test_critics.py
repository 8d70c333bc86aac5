"""Bodies look at images through a convolution and at all else directly, and take no setting that they ignore."""

from typing import Any

import pytest
import torch

from common.errors import ConfigError
from common.rl.algorithms.critic_learner import DEFAULT_OPTIMIZER, CriticConfig, CriticLearner
from common.rl.critics import Body, bounds_of, critics_of, feed_forward
from common.rl.networks import Inputs
from common.types import ActionSpec, ArraySpec, EnvSpec

VECTOR = ArraySpec("vector", "<f4", (3,))
NUMBER = ArraySpec("number", "<i8", ())
IMAGE = ArraySpec("image", "|u1", (10, 10, 2))


def body(specs: tuple[ArraySpec, ...], members: int = 2, extra: int = 1, **network: Any) -> tuple[Inputs, Body]:
    config = feed_forward({"hidden": [8], **network}, "SAC")
    inputs = Inputs(specs, config)
    torch.manual_seed(0)
    return inputs, Body(inputs, config, members, extra, 1)


def test_flat_observations_and_the_action_go_straight_to_the_layers() -> None:
    inputs, critic = body((VECTOR, NUMBER))
    observation = {"vector": torch.tensor([[1.0, 2.0, 3.0]]), "number": torch.tensor([4])}
    features = critic.features(inputs(observation))
    assert features.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    values = critic(features, torch.tensor([[0.5]]))
    assert values.shape == (2, 1, 1)
    torch.testing.assert_close(values, critic.layers(torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.5]])))


def test_images_go_through_one_convolution_for_all_members() -> None:
    inputs, critic = body((IMAGE, VECTOR), name="minatar_cnn")
    observation = {"image": torch.randint(0, 255, (5, 10, 10, 2), dtype=torch.uint8), "vector": torch.randn(5, 3)}
    features = critic.features(inputs(observation))
    assert features.shape == (5, 128 + 3)
    torch.testing.assert_close(features[:, -3:], observation["vector"])
    assert critic.trunk is not None
    wrt = list(critic.parameters())
    gradients = torch.autograd.grad(critic(features, torch.randn(5, 1)).square().sum(), wrt)
    assert all(g.abs().max() > 0 for g in gradients)


def test_critics_depend_on_the_seed_alone_and_begin_unlike_the_actor_of_that_seed() -> None:
    config = feed_forward({"hidden": [8]}, "SAC")
    inputs = Inputs((VECTOR,), config)
    torch.manual_seed(5)
    actor = Body(inputs, config, 2, 1, 1)
    one, same, other = (critics_of(inputs, config, 2, 1, 1, seed) for seed in (5, 5, 6))
    weights = [x.layers.state_dict()["weight_0"] for x in (one, same, other, actor)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_each_seed_and_each_update_has_noise_of_its_own() -> None:
    def learner(seed: int) -> CriticLearner:
        return CriticLearner(CriticConfig(), DEFAULT_OPTIMIZER, body((VECTOR,))[1], seed)

    drawn = [learner(seed).uniforms(2).tolist() for seed in (1, 2, 2**31 - 1)]
    assert drawn == [
        [0.06302452087402344, 0.2966408133506775],
        [0.9898055195808411, 0.38036441802978516],
        [0.6646453142166138, 0.7291029691696167],
    ]
    later = learner(1)
    assert later.uniforms(2).tolist() == drawn[0]
    later.optimizer.steps = 1
    assert later.uniforms(2).tolist() == [0.9220871329307556, 0.7879212498664856]


@pytest.mark.parametrize("network", [{"lstm": 8}, {"popart": True}, {"distribution": "beta"}, {"shared": True}])
def test_a_network_setting_that_means_nothing_here_is_refused(network: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"network\.{next(iter(network))}=.* says nothing to SAC"):
        feed_forward(network, "SAC")


def test_an_encoder_for_a_flat_observation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"network\.encoders\.vector"):
        body((VECTOR, NUMBER), encoders={"vector": {"hidden": [4]}})


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (ActionSpec("box", "<f4", (1,), low=(-1.0,), high=(float("inf"),)), "wants finite bounds"),
        (ActionSpec("box", "<f4", (1,), low=(-3e38,), high=(3e38,)), "wants finite bounds"),
        (ActionSpec("discrete", "<i8", (), (2,)), "takes Box actions"),
        (ActionSpec("multi_discrete", "<i8", (2,), (2, 2)), "takes Box actions"),
    ],
)
def test_actions_without_bounds_are_refused(action: ActionSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bounds_of(EnvSpec("x", (VECTOR,), action), "TD3")
