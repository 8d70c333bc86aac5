"""Plays fresh episodes with a run's policy and reports what they returned.

Every environment plays a quota fixed beforehand: taking the first N episodes to end would favour the short ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.error import DependencyNotInstalled
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common.config import Config, load
from common.errors import ConfigError
from common.rl.actor import Actor, Seen, load_policy
from common.rl.registry import make_actor
from common.types import EnvSpec
from services.control.extras import require
from services.control.stepping import step_rows
from services.control.targets import writing
from services.control.words import count
from services.env_server.backends import Backend, make_backend
from services.learner_server.checkpoint import find, load_state, reading

MAX_ENVS = 32
LINE_S = 30.0
FRAMES_PER_SECOND = 30
VIDEO_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Undiscounted returns and lengths [N] of the episodes, in steps."""

    returns: np.ndarray
    lengths: np.ndarray

    def report(self) -> dict[str, Any]:
        r, n = self.returns, self.lengths
        return {
            "episodes": len(r),
            "mean": float(r.mean()),
            "std": float(r.std()),
            "min": float(r.min()),
            "max": float(r.max()),
            "mean_length": float(n.mean()),
            "returns": [float(x) for x in r],
        }


class Player:
    """A policy, its recurrent state and a group of environments; `step` plays one greedy step of all of them."""

    def __init__(self, policy: Actor, backend: Backend, seed: int) -> None:
        self._policy = policy
        self._backend = backend
        n = backend.num_envs
        self._rows = step_rows(backend.spec, n)
        self._state = {s.name: torch.from_numpy(np.zeros((n, *s.shape), s.dtype)) for s in policy.spec.state}
        self._first = np.ones(n, np.bool_)
        # A mode needs no noise, but the policy takes it all the same.
        self._noise = torch.full((n, policy.noise_size), 0.5)
        self._env = torch.arange(n)
        backend.reset(seed, self._rows.observation)

    @property
    def reward(self) -> np.ndarray:
        """The last step's rewards, [B] float32."""
        return self._rows.reward

    @property
    def valid(self) -> np.ndarray:
        """Where the last step was a decision and not only a reset, [B] bool."""
        return self._rows.valid

    @property
    def ended(self) -> np.ndarray:
        """Which environments' episodes ended in the last step, [B] bool."""
        ended: np.ndarray = self._rows.terminated | self._rows.truncated
        return ended

    def step(self) -> None:
        with torch.inference_mode():
            observation = {name: torch.from_numpy(array) for name, array in self._rows.observation.items()}
            first, reward = torch.from_numpy(self._first), torch.from_numpy(self.reward)
            seen = Seen(observation, first, reward, self._state, self._noise, self._env)
            acted = self._policy.act(seen, greedy=True)
        self._state = acted.state
        finals = self._backend.step(acted.action.numpy(), *self._rows)
        self._first = ~self.valid
        self._first[finals.indices] = True


def play(player: Player, quota: np.ndarray, played: Callable[[int, int], None]) -> Evaluation:
    """Plays `quota` [B] whole episodes in each environment, telling `played` after each step how many episodes have
    ended, and how many steps all environments have taken, so far."""
    n = len(quota)
    left = quota.copy()
    sums, steps = np.zeros(n, np.float64), np.zeros(n, np.int64)
    returns: list[float] = []
    lengths: list[int] = []
    taken = 0
    while left.any():
        player.step()
        sums += np.where(player.valid, player.reward, 0.0)
        steps += player.valid
        taken += int(player.valid.sum())
        for b in np.flatnonzero(player.ended):
            if left[b]:
                returns.append(float(sums[b]))
                lengths.append(int(steps[b]))
                left[b] -= 1
            sums[b], steps[b] = 0.0, 0
        played(len(returns), taken)
    return Evaluation(np.array(returns), np.array(lengths))


def quotas(episodes: int, n: int) -> np.ndarray:
    """Shares `episodes` out over `n` environments, [n] int."""
    return np.full(n, episodes // n) + (np.arange(n) < episodes % n)


def evaluate_run(run: Path, *, episodes: int, video: bool, seed: int, checkpoint: str) -> None:
    """Evaluates a run, prints the result and writes RUN/evaluation.json, with `video` RUN/video.mp4 too."""
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run} is no run: it has no config.yaml", "name a directory under runs/")
    # The run's own settings alone: variables of this shell have nothing to do with it.
    config = load(run / "config.yaml", (), {})
    torch.set_num_threads(1)
    path = find(run, checkpoint)
    state = load_state(path)
    with reading(path):
        spec, weights = EnvSpec.from_wire(state["env"]), state["trainer"]["policy"]
    policy = make_actor(config.algorithm, config.network, spec, config.run.seed)
    with reading(path):
        load_policy(policy, weights)
    policy.eval()
    console = Console()
    if video:
        check_video(config)
    backend = make_backend(config.env, min(episodes, MAX_ENVS), at_least=True)
    quota = quotas(episodes, backend.num_envs)
    _same_spec(spec, backend.spec)
    try:
        with progress(console, episodes) as played:
            evaluation = play(Player(policy, backend, seed), quota, played)
    finally:
        backend.close()
    report = evaluation.report()
    console.print(
        f"[bold]return {report['mean']:.1f} ± {report['std']:.1f}[/]  min {report['min']:.1f}  max {report['max']:.1f}"
        f"  over {episodes} episodes of {report['mean_length']:.1f} steps  [dim](checkpoint {path.name})[/]",
        highlight=False,
        soft_wrap=True,
    )
    # After it was said: episodes may take hours, and the run may be another user's.
    with writing(f"{run} cannot take evaluation.json", "copy the run to where there is room and you may write"):
        text = json.dumps({"checkpoint": path.name, "seed": seed} | report, indent=2)
        (run / "evaluation.json").write_text(text + "\n")
    console.print(f"wrote {run / 'evaluation.json'}", highlight=False, soft_wrap=True)
    if video:
        steps = write_video(policy, config, run / "video.mp4", seed)
        console.print(f"wrote {run / 'video.mp4'} ({steps} steps)", highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, episodes: int) -> Iterator[Callable[[int, int], None]]:
    """Gives what shows `play`'s progress: a bar on a terminal, a line every LINE_S elsewhere.

    Steps are shown too: those of a long game go on for minutes without an episode that ends.
    """
    if console.is_terminal:
        columns = (TextColumn("[bold]evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("", total=episodes)
            yield lambda done, steps: bar.update(task, completed=done, description=f"{count(steps)} steps")
        return
    due = time.monotonic() + LINE_S

    def line(done: int, steps: int) -> None:
        nonlocal due
        if (now := time.monotonic()) >= due:
            due = now + LINE_S
            console.print(f"evaluating: {done} of {episodes} episodes, {count(steps)} steps", highlight=False)

    yield line


def check_video(config: Config) -> None:
    """Raises ConfigError where no video can be made: asked before the episodes are played."""
    require("imageio", "imageio_ffmpeg")
    backend = make_backend(config.env, 1, render_mode="rgb_array", at_least=True)
    try:
        backend.reset(0, step_rows(backend.spec, backend.num_envs).observation)
        _picture(backend)
    finally:
        backend.close()


def write_video(policy: Actor, config: Config, path: Path, seed: int) -> int:
    """Writes one greedy episode as an mp4; gives its steps. Needs an environment that renders to rgb_array."""
    import imageio.v2 as imageio

    backend = make_backend(config.env, 1, render_mode="rgb_array", at_least=True)
    try:
        player = Player(policy, backend, seed)
        picture, steps = _picture(backend), 0
        # macro_block_size 2 keeps the picture's own size; H.264 needs even sides.
        with imageio.get_writer(path, fps=FRAMES_PER_SECOND, macro_block_size=2) as writer:
            while steps < VIDEO_STEPS:
                writer.append_data(picture)  # type: ignore[attr-defined]
                player.step()
                steps += 1
                if player.ended[0]:
                    break
                picture = _picture(backend)
    finally:
        backend.close()
    return steps


def _picture(backend: Backend) -> np.ndarray:
    said = ""
    try:
        picture = backend.render()
    except NotImplementedError:  # gymnasium.Env's own word for drawing nothing
        picture = None
    except DependencyNotInstalled as error:
        picture, said = None, f" here: {error}"
    if picture is None:
        remedy = "install that, or leave --video out" if said else "leave --video out"
        raise ConfigError(f"--video: env.id={backend.spec.id!r} draws no pictures{said}", remedy)
    return picture


def _same_spec(trained: EnvSpec, here: EnvSpec) -> None:
    if (trained.observations, trained.action) != (here.observations, here.action):
        raise ConfigError(
            f"env.id={here.id!r} now has {here.observations}, {here.action}; the checkpoint was trained on "
            f"{trained.observations}, {trained.action}",
            "install the version of the environment that the run was trained with",
        )
