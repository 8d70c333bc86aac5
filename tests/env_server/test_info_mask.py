"""A mask in an environment's info reaches the policy, which then never chooses what is not allowed."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from common.config import EnvConfig
from common.errors import ConfigError
from common.rl.actor import Seen
from common.rl.noise import uniforms
from common.rl.policy import build_policy
from common.types import ArraySpec, EnvSpec, PolicySpec, select
from services.env_server.backends import Backend, make_backend
from services.env_server.backends.info_mask import components
from services.env_server.backends.spaces import action_spec
from services.env_server.rollout import Rollout

HERE = __name__
MASKED: dict[str, Any] = {"hidden": [4], "action_mask": "action_mask"}


class Doors(gymnasium.Env[Any, Any]):
    """Four doors, of which number t and the next are open; a closed one cannot be taken. It ends after `length`."""

    observation_space: gymnasium.Space[Any] = spaces.Box(0, 9, (1,), np.float32)
    action_space: gymnasium.Space[Any] = spaces.Discrete(4)

    def __init__(self, length: int = 3, cut: bool = False, quiet_end: bool = True) -> None:
        self.length, self.cut, self.quiet_end = length, cut, quiet_end

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {"action_mask": self.mask()}

    def look(self) -> Any:
        return np.array([self.t], np.float32)

    def mask(self) -> Any:
        return np.isin(np.arange(4), [self.t % 4, (self.t + 1) % 4])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.mask()[action], f"door {action} is closed at {self.t}"
        self.t += 1
        over = self.t == self.length
        info = {} if over and self.quiet_end else {"action_mask": self.mask()}
        return self.look(), 1.0, over and not self.cut, over and self.cut, info


class Furnished(Doors):
    """Its observation is a Dict already."""

    observation_space = spaces.Dict({"at": spaces.Box(0, 9, (1,), np.float32), "wall": spaces.MultiBinary(2)})

    def look(self) -> Any:
        return {"at": np.array([self.t], np.float32), "wall": np.array([0, 1], np.int8)}


class Labelled(Furnished):
    observation_space = spaces.Dict({"at": spaces.Box(0, 9, (1,), np.float32), "action_mask": spaces.MultiBinary(4)})


class Told(Doors):
    """Its mask, from the second step on, is what it was told to give."""

    def __init__(self, mask: Any) -> None:
        super().__init__(9)
        self.told = mask

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, reward, *ends, _ = super().step(action)
        return seen, reward, ends[0], ends[1], {} if self.told is None else {"action_mask": np.array(self.told)}


class Slide(Doors):
    action_space = spaces.Box(-1, 1, (2,), np.float32)


def config(env_id: str, **settings: Any) -> EnvConfig:
    return EnvConfig(id=env_id, **{"info_mask": True, **settings})


def opened(backend: Backend, policy: PolicySpec, unroll: int) -> Rollout:
    rollout = Rollout(backend.spec, policy, unroll, backend.num_envs)
    backend.reset(3, rollout.observation_row())
    rollout.begin()
    return rollout


def walk(env_id: str, doors: list[int], **kwargs: Any) -> dict[str, np.ndarray]:
    """One environment through these doors: its unroll."""
    backend = make_backend(config(f"{HERE}:{env_id}", kwargs=kwargs), 1)
    rollout = opened(backend, PolicySpec(), len(doors))
    for door in doors:
        action = rollout.act({"action": np.array([door])}, 0)
        rollout.advance(backend.step(action, *rollout.targets()))
    backend.close()
    return rollout.finish()


def test_the_mask_is_one_more_entry_of_the_observation() -> None:
    spec = make_backend(config(f"{HERE}:Doors"), 2).spec
    mask = ArraySpec("action_mask", "|i1", (4,))
    assert sorted(spec.observations, key=lambda entry: entry.name) == [mask, ArraySpec("obs", "<f4", (1,))]
    names = [entry.name for entry in make_backend(config(f"{HERE}:Furnished"), 2).spec.observations]
    assert sorted(names) == ["action_mask", "at", "wall"]
    assert [entry.name for entry in make_backend(config(f"{HERE}:Doors", info_mask=False), 2).spec.observations] == [
        "obs"
    ]


def test_where_an_episode_ended_the_mask_is_the_next_episodes() -> None:
    arrays = walk("Doors", [0, 1, 2, 0])
    rows = [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]]
    assert arrays["observation.action_mask"][:, 0].tolist() == rows
    assert arrays["first"][:, 0].tolist() == [True, False, False, True, False]
    assert arrays["final.action_mask"].tolist() == [[0, 0, 0, 0]]


def test_a_truncated_episodes_last_mask_is_kept_with_its_last_observation() -> None:
    arrays = walk("Doors", [0, 1, 2], cut=True, quiet_end=False)
    assert (arrays["final.obs"].tolist(), arrays["final.action_mask"].tolist()) == ([[3.0]], [[1, 0, 0, 1]])
    with pytest.raises(ConfigError, match=r"the info that step .* gave has no 'action_mask'"):
        walk("Doors", [0, 1, 2], cut=True, quiet_end=True)


@pytest.mark.parametrize("env_id", ["Doors", "Furnished"])
def test_a_masked_action_is_never_chosen(env_id: str) -> None:
    torch.set_num_threads(1)
    backend = make_backend(config(f"{HERE}:{env_id}"), 8)
    policy = build_policy(MASKED, backend.spec, seed=1)
    rollout = opened(backend, policy.spec, 40)
    for step in range(40):
        request = {name: torch.from_numpy(x) for name, x in rollout.request().items()}
        noise = torch.from_numpy(uniforms(1, (0, 8), step, policy.noise_size))
        seen = Seen(select("observation", request), request["first"], request["reward"], {}, noise, torch.arange(8))
        with torch.inference_mode():
            acted = policy.act(seen)
        chosen = {"action": acted.action.numpy(), "extras.log_prob": acted.extras["log_prob"].numpy()}
        rollout.advance(backend.step(rollout.act(chosen, 0), *rollout.targets()))
    arrays = rollout.finish()
    allowed = np.take_along_axis(arrays["observation.action_mask"][:-1], arrays["action"][..., None], -1)
    assert allowed.min() == 1
    # Both open doors were taken, each about as often: the mask is no detour around the policy.
    assert 0.3 < (arrays["action"] == arrays["observation.action_mask"][:-1].argmax(-1)).mean() < 0.7


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (None, r"the info that step of env.id='.*Told' gave has no 'action_mask', it has \[\]"),
        ([True, False], r"step .* gave a mask of bool \(2,\), its actions have 4 choices"),
        ([[1, 1, 1, 1]], r"a mask of int64 \(1, 4\)"),
        ([0.0, 0.0, 0.5, 0.5], r"a mask of float64 \(4,\)"),
        ([0, 0, 0, 0], "gave a mask that allows nothing"),
    ],
)
def test_a_mask_that_is_none_names_the_step_and_what_it_should_be(mask: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        walk("Told", [0], mask=mask)


def test_any_number_but_zero_allows() -> None:
    assert walk("Told", [0], mask=[0, 7, 0, -1])["observation.action_mask"][1, 0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (config(f"{HERE}:Labelled"), r"env.id='.*Labelled' has an observation 'action_mask' already"),
        (config(f"{HERE}:Slide"), "the actions of env.id='.*Slide' have no choices"),
        (config("CartPole-v1"), r"native environments \(classic_control\) of env.id='CartPole-v1' show no info"),
        (config("headrace/Null-v0"), r"native environments \(null\)"),
        (config("mpe2.simple_spread_v3:parallel_env"), "the agents of env.id=.* show no info"),
        (config("CartPole-v1", vectorized=False), "the info that reset .* gave has no 'action_mask'"),
    ],
)
def test_what_can_give_no_mask_refuses(settings: EnvConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=f"env.info_mask=true: {text}"):
        opened(make_backend(settings, 3), PolicySpec(), 1)


def test_an_environment_of_gymnasiums_own_shows_its_mask() -> None:
    newest = max(name for name in gymnasium.registry if name.startswith("Taxi-v"))
    backend = make_backend(config(newest), 1)
    taxi = gymnasium.make(newest)
    (seed,) = np.random.SeedSequence(3).generate_state(1) & 0x7FFFFFFF
    _, info = taxi.reset(seed=int(seed))
    request = opened(backend, PolicySpec(), 1).request()
    assert request["observation.action_mask"].tolist() == [info["action_mask"].tolist()]
    assert 0 < info["action_mask"].sum() < 6


def test_a_mask_that_nobody_asked_for_is_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.env")
    for env_id in (f"{HERE}:Doors", "CartPole-v1"):
        opened(make_backend(config(env_id, info_mask=False, vectorized=False), 2), PolicySpec(), 1)
    (said,) = caplog.messages
    assert "env.info_mask=true and network.action_mask=action_mask use it" in said


def test_components_of_actions_and_what_each_must_allow() -> None:
    space = spaces.Dict(
        {
            "a": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))),
            "b": spaces.Box(0, 1, (2,)),
            "c": spaces.MultiDiscrete([4, 2]),
        }
    )
    spec: EnvSpec | Any = action_spec("any", space)
    assert components(spec) == [3, 1, 1, 4, 2]
    assert components(action_spec("any", spaces.Box(0, 1, (2,)))) == []


class Levers(Doors):
    """Two bits and a choice of three; its mask is what it was told."""

    action_space = spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(3)))

    def __init__(self, mask: list[int]) -> None:
        super().__init__()
        self.told = np.array(mask)

    def mask(self) -> Any:
        return self.told


def test_a_bit_may_be_held_at_zero_but_a_choice_needs_something_to_choose() -> None:
    free = make_backend(config(f"{HERE}:Levers", kwargs={"mask": [0, 0, 0, 1, 0]}), 1)
    assert opened(free, PolicySpec(), 1).request()["observation.action_mask"].tolist() == [[0, 0, 0, 1, 0]]
    stuck = make_backend(config(f"{HERE}:Levers", kwargs={"mask": [1, 1, 0, 0, 0]}), 1)
    with pytest.raises(ConfigError, match="allows nothing"):
        opened(stuck, PolicySpec(), 1)
