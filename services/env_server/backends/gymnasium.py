"""Any Gymnasium environment as a backend: by its registered id, or made by a factory of the user's.

Owns how an environment is found and made, how a group of plain ones is stepped in one loop, and how one that brings a
vector implementation is driven. Knows no network and no unroll.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import Arrays, EnvSpec
from services.env_server.backends import NO_FINALS, Backend, Finals
from services.env_server.backends.info_mask import InfoMask, hint, refuse
from services.env_server.backends.native_warnings import route_warnings
from services.env_server.backends.spaces import Leaf, Space, action_putter, action_rows, action_spec, observation_leaves

Env = gymnasium.Env[Any, Any]

# Namespaces whose ids are registered by importing a module, and by calling its function where it has one.
_NAMESPACES = {"ALE": ("ale_py", ""), "MinAtar": ("minatar.gym", "register_envs")}
# What an error of a missing library says, and the extra that brings it; box2d's asks for pygame too.
_EXTRAS = {
    "box2d": "box2d",
    "mujoco": "mujoco",
    "ale_py": "atari",
    "minatar": "minatar",
    "crafter": "crafter",
    "pettingzoo": "multiagent",
    "mpe2": "multiagent",
    "pygame": "classic",
}


def make_backend(config: EnvConfig, num_envs: int, render_mode: str | None = None, at_least: bool = False) -> Backend:
    """Gives the group's own vector implementation where it has one, else a loop of plain ones.

    It is the loop, too, where something is drawn or `env.info_mask` is set. Raises ConfigError naming the key and the
    remedy.
    """
    make, vector = _find(config.id)
    route_warnings(config.id)
    extra = {} if render_mode is None else {"render_mode": render_mode}
    with_vector = vector is not None and config.vectorized and render_mode is None and not config.info_mask
    # A vector environment takes Gymnasium's "no limit" for a limit that is always past.
    with_vector = with_vector and config.kwargs.get("max_episode_steps") != -1
    try:
        if vector is not None and with_vector:
            venv = vector(num_envs, **config.kwargs)
            if venv.metadata.get("autoreset_mode") in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
                return VectorBackend(config, venv)
            venv.close()
        first = make(**config.kwargs, **extra)
        if agents := len(getattr(first, "possible_agents", ())):
            from services.env_server.backends import pettingzoo

            refuse(config, "the agents", "put the mask into a Dict observation")
            columns = -(-num_envs // agents) * agents if at_least else num_envs
            return pettingzoo.make_backend(config, columns, first, lambda: make(**config.kwargs, **extra))
        return LoopBackend(config, [first, *(make(**config.kwargs, **extra) for _ in range(num_envs - 1))])
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise _missing(config.id, error) from error
    except TypeError as error:
        raise ConfigError(
            f"env.id={config.id!r} was not made of env.kwargs={config.kwargs}: {error}",
            "give env.kwargs that its constructor takes",
        ) from error


class LoopBackend:
    """Plain environments stepped one after another, each reset in the step that ends its episode."""

    holds_gil = True

    def __init__(self, config: EnvConfig, envs: list[Env]) -> None:
        first = envs[0]
        if not isinstance(first, gymnasium.Env):
            raise ConfigError(
                f"env.id={config.id!r} made {type(first).__name__}, not a gymnasium.Env", "return one from the factory"
            )
        for env in envs:
            _quicken(env.unwrapped.action_space)
        self._envs = [InfoMask(env, config.id) for env in envs] if config.info_mask else envs
        ticks = frame_skip_of(config, first)
        self.spec, self._leaves = describe(config, self._envs[0].observation_space, first.action_space, ticks)
        self.num_envs = len(envs)
        self._masked = config.info_mask
        self._put_action = action_putter(first.action_space)
        self._action_space = first.action_space

    def reset(self, seed: int, observation: Arrays) -> None:
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs) & 0x7FFFFFFF
        for b, (env, own) in enumerate(zip(self._envs, seeds.tolist(), strict=True)):
            first, info = env.reset(seed=own)
            if b == 0 and not self._masked:
                hint(self.spec.id, info)
            for leaf in self._leaves:
                # Assignment would broadcast a wrong shape in silence; once checked, an environment is trusted.
                check_shape(self.spec.id, leaf, leaf.read(first))
                observation[leaf.spec.name][b] = leaf.read(first)

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        each = action_rows(self._action_space, self._put_action(action))
        rows = [(leaf.read, observation[leaf.spec.name]) for leaf in self._leaves]
        rewards: list[float] = []
        ended: list[int] = []
        finals: list[list[np.ndarray]] = []
        terminated.fill(False)
        truncated.fill(False)
        valid.fill(True)
        for b, (env, chosen) in enumerate(zip(self._envs, each, strict=True)):
            seen, gained, stopped, cut, _ = env.step(chosen)
            rewards.append(float(gained))
            if stopped or cut:
                terminated[b] = stopped
                truncated[b] = cut
                ended.append(b)
                finals.append([np.array(leaf.read(seen), leaf.spec.dtype) for leaf in self._leaves])
                seen, _ = env.reset()
            for read, row in rows:
                row[b] = read(seen)
        reward[:] = rewards
        return _finals(self._leaves, ended, finals) if ended else NO_FINALS

    @property
    def tallies(self) -> Mapping[str, int]:
        return {}

    def render(self) -> np.ndarray | None:
        picture = self._envs[0].render()
        return picture if isinstance(picture, np.ndarray) else None

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _quicken(space: Space) -> None:
    """Lets a Discrete space look at a plain int as quickly as that can be done, where its class looks at dtypes first.

    Gymnasium's own environments ask it at every step whether they contain the action: a sixth of LunarLander's step.
    """
    if type(space) is Discrete:
        by_class, first, end = space.contains, int(space.start), int(space.start + space.n)
        space.contains = lambda x: first <= x < end if type(x) is int else by_class(x)  # type: ignore[method-assign]


class VectorBackend:
    """An environment's own vector implementation, which resets in the same step or in the next."""

    holds_gil = False

    def __init__(self, config: EnvConfig, venv: VectorEnv[Any, Any, Any]) -> None:
        self.spec, self._leaves = describe(config, venv.single_observation_space, venv.single_action_space)
        self.num_envs = venv.num_envs
        self._venv = venv
        self._put_action = action_putter(venv.single_action_space)
        self._same_step = venv.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        self._ended = np.zeros(self.num_envs, np.bool_)

    def reset(self, seed: int, observation: Arrays) -> None:
        first, _ = self._venv.reset(seed=seed)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._write(first, observation)

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        seen, reward[:], terminated[:], truncated[:], info = self._venv.step(self._put_action(action))
        self._write(seen, observation)
        ended = terminated | truncated
        if self._same_step:
            valid.fill(True)
            return self._last(np.flatnonzero(ended), info) if ended.any() else NO_FINALS
        np.logical_not(self._ended, out=valid)
        self._ended = ended
        return NO_FINALS

    @property
    def tallies(self) -> Mapping[str, int]:
        return {}

    def render(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        self._venv.close()

    def _write(self, seen: Any, observation: Arrays) -> None:
        for leaf in self._leaves:
            observation[leaf.spec.name][:] = leaf.read(seen)

    def _last(self, ended: np.ndarray, info: dict[str, Any]) -> Finals:
        last = info["final_obs"]
        if isinstance(last, np.ndarray) and last.dtype.hasobject:
            each = [[np.asarray(leaf.read(last[b]), leaf.spec.dtype) for leaf in self._leaves] for b in ended]
            return _finals(self._leaves, ended, each)
        return Finals(ended.astype(np.int32), {leaf.spec.name: leaf.read(last)[ended] for leaf in self._leaves})


def frame_skip_of(config: EnvConfig, env: Env) -> int:
    """Gives the simulator's ticks per step where it says them, as MuJoCo's do, else env.frame_skip.

    Raises ConfigError if the two disagree.
    """
    said = getattr(env.unwrapped, "frame_skip", None)
    if not isinstance(said, int):
        return config.frame_skip
    if config.frame_skip not in (1, said):
        raise ConfigError(
            f"env.frame_skip={config.frame_skip} disagrees with env.id={config.id!r}, whose step is {said} ticks",
            "leave env.frame_skip out; env.kwargs.frame_skip is what changes the step",
        )
    return said


def describe(
    config: EnvConfig, observation: Space, action: Space, ticks: int | None = None
) -> tuple[EnvSpec, tuple[Leaf, ...]]:
    """Gives the spec of an environment with these spaces, and where its arrays lie in an observation.

    `ticks` per step are env.frame_skip, if not given.
    """
    leaves = observation_leaves(config.id, observation)
    arrays = tuple(leaf.spec for leaf in leaves)
    return EnvSpec(config.id, arrays, action_spec(config.id, action), ticks or config.frame_skip), leaves


def _finals(leaves: tuple[Leaf, ...], ended: Iterable[int], each: list[list[np.ndarray]]) -> Finals:
    columns = zip(leaves, zip(*each, strict=True), strict=True)
    return Finals(np.array(ended, np.int32), {leaf.spec.name: np.stack(arrays) for leaf, arrays in columns})


def check_shape(env_id: str, leaf: Leaf, value: Any) -> None:
    """Raises ConfigError where one observation's array has another shape than its space says."""
    if np.shape(value) != leaf.spec.shape:
        raise ConfigError(
            f"env.id={env_id!r} gave observation {leaf.spec.name!r} of shape {np.shape(value)}, its space says "
            f"{leaf.spec.shape}",
            "mend the environment's observation_space",
        )


def _find(env_id: str) -> tuple[Callable[..., Env], Callable[..., VectorEnv[Any, Any, Any]] | None]:
    """Gives what makes one environment, and what makes a vector of them where the id registers that."""
    module, colon, name = env_id.rpartition(":")
    register(env_id, name)
    if colon:
        found = _import(env_id, module)
        if name not in gymnasium.registry:
            factory = getattr(found, name, None)
            if not callable(factory):
                raise ConfigError(
                    f"env.id={env_id!r}: {name!r} is neither a registered id nor a callable of {module}",
                    _meant(name, [*gymnasium.registry, *vars(found)]),
                )
            return factory, None
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error:
        raise ConfigError(f"env.id={env_id!r} is not registered", _meant(name, gymnasium.registry)) from None

    def make(**kwargs: Any) -> Env:
        # The checker is a wrapper on every step; what matters of it is checked at the first reset.
        return gymnasium.make(name, disable_env_checker=True, **kwargs)

    def vector(num_envs: int, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
        return gymnasium.make_vec(name, num_envs, vectorization_mode="vector_entry_point", **kwargs)

    return make, vector if spec.vector_entry_point is not None else None


def _meant(name: str, known: Iterable[str]) -> str:
    """Gives the remedy for a name that nothing has: the nearest one, or the forms of a name, for there are hundreds."""
    close = get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]}?" if close else "give a Gymnasium id, module:Id, or package.module:factory"


def register(env_id: str, name: str) -> None:
    namespace = name.partition("/")[0]
    if namespace in _NAMESPACES:
        module, function = _NAMESPACES[namespace]
        found = _import(env_id, module)
        if function and not any(known.startswith(f"{namespace}/") for known in gymnasium.registry):
            getattr(found, function)()


def _import(env_id: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(env_id, error) from error


def _missing(env_id: str, error: Exception) -> ConfigError:
    said = str(error).lower()
    extra = next((extra for name, extra in _EXTRAS.items() if name in said), None)
    remedy = (
        f"in the clone: pip install -e '.[{extra}]'" if extra else "install what it needs, or mend the module's name"
    )
    return ConfigError(f"env.id={env_id!r} cannot be imported: {error}", remedy)
