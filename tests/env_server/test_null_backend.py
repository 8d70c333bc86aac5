"""The null environment has the shape, the pace and the episodes that it was given, and says what it was given wrong."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import ActionSpec, Arrays, ArraySpec, PolicySpec
from services.env_server.backends import make_backend
from services.env_server.rollout import Rollout


def null(num_envs: int, **kwargs: Any) -> Any:
    return make_backend(EnvConfig(id="headrace/Null-v0", kwargs=kwargs, frame_skip=3), num_envs)


def run(backend: Any, steps: int, seed: int = 1) -> Arrays:
    rollout = Rollout(backend.spec, PolicySpec(), steps, backend.num_envs)
    backend.reset(seed, rollout.observation_row())
    rollout.begin()
    while not rollout.complete:
        action = rollout.act({"action": np.zeros(backend.num_envs, np.int64)}, 0)
        rollout.advance(backend.step(action, *rollout.targets()))
    return rollout.finish()


def test_its_spec_is_cartpoles_unless_told_otherwise() -> None:
    assert null(2).spec.observations == (ArraySpec("obs", "<f4", (4,)),)
    assert null(2).spec.action == ActionSpec("discrete", "<i8", (), n=(2,))
    spec = null(2, shape=[2, 3], dtype="<i2", actions=18).spec
    assert (spec.observations, spec.action.n) == ((ArraySpec("obs", "<i2", (2, 3)),), (18,))
    assert (spec.id, spec.frame_skip) == ("headrace/Null-v0", 3)
    assert null(2, observation_bytes=28224).spec.observations == (ArraySpec("obs", "|u1", (28224,)),)


def test_the_first_number_counts_the_steps_of_an_episode_and_the_last_one_is_kept() -> None:
    arrays = run(null(2, episode_steps=4), 7)
    # The second environment of two begins half-way through its first episode.
    assert arrays["observation.obs"][:, :, 0].T.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3], [2, 3, 0, 1, 2, 3, 0, 1]]
    assert arrays["terminated"].T.nonzero()[1].tolist() == [3, 1, 5]
    assert arrays["first"].T.nonzero()[1].tolist() == [0, 4, 0, 2, 6]
    assert arrays["final_index"].tolist() == [3, 6, 11]
    assert arrays["final.obs"][:, 0].tolist() == [4, 4, 4]
    assert arrays["episode_returns"].tolist() == [2, 4, 4]
    assert arrays["valid"].all()
    assert not arrays["truncated"].any()
    assert (arrays["reward"] == 1).all()


def test_the_rest_of_an_observation_is_the_environments_own_and_drawn_from_the_seed() -> None:
    pixels = run(null(2, observation_bytes=1000, episode_steps=1000), 300)["observation.obs"]
    assert pixels.dtype == np.uint8
    assert pixels[:, 0, 0].tolist() == [*range(256), *range(45)]
    assert (pixels[:, :, 1:] == pixels[0, :, 1:]).all()
    assert (pixels[0, 0] != pixels[0, 1]).sum() > 900
    again, other = (run(null(2, observation_bytes=1000), 1, seed)["observation.obs"][0] for seed in (1, 2))
    np.testing.assert_array_equal(again[:, 1:], pixels[0, :, 1:])
    assert (other[:, 1:] != pixels[0, :, 1:]).sum() > 1900


def test_an_observation_may_be_one_number() -> None:
    assert run(null(1, shape=[]), 2)["observation.obs"].tolist() == [[0], [1], [2]]


def test_a_step_takes_its_time_asleep_or_busy() -> None:
    asleep, busy = (null(3, step_s=0.01, sleep=sleep) for sleep in (True, False))
    wall, core = time.perf_counter(), time.thread_time()
    run(asleep, 4)
    assert time.perf_counter() - wall >= 4 * 3 * 0.01
    assert time.thread_time() - core < 0.06
    core = time.thread_time()
    run(busy, 4)
    assert 4 * 3 * 0.01 <= time.thread_time() - core < 0.18


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"stp_s": 1}, r"^unknown key env.kwargs.stp_s=1 \(did you mean env.kwargs.step_s\?\)$"),
        ({"step_s": -1}, r"^env.kwargs.step_s=-1: Input should be greater than or equal to 0 \(see NullConfig"),
        ({"shape": [4, 0]}, r"^env.kwargs.shape.1=0: Input should be greater than or equal to 1"),
        ({"dtype": "O"}, r"^env.kwargs.dtype='O': .*O holds no numbers"),
        ({"observation_bytes": 9, "shape": [9]}, r"^env.kwargs=.*: .*observation_bytes and shape or dtype exclude"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        null(1, **kwargs)
