"""What Headrace is compared with, and its limit: loops without messages, in as many processes as they may have.

Knows how to step, infer and learn in one process; knows no service. Reset steps that are no decisions do not count.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from common.config import Config
from common.errors import HeadraceError
from common.rl.actor import Actor, Seen
from common.rl.numpy_actor import numpy_actor
from common.rl.registry import make_actor
from common.types import Arrays
from services.control.bench.numpy_cartpole import NumpyCartPole
from services.control.engines.local import THREAD_VARIABLES
from services.control.stepping import random_actions, step_rows
from services.env_server.backends import make_backend
from services.env_server.backends.gymnasium import register
from services.env_server.backends.native_warnings import route_warnings
from services.env_server.rollout import Rollout
from services.learner_server.staging import stage
from services.learner_server.trainer import Trainer

VECTOR = 8
WARM_SHARE = 0.2
ACTIONS = 64
JOIN_S = 10.0
POLL_S = 1.0
ATARI = "ALE/"
TINY = 2.0**-24  # noise lies in the open interval

# One turn of the loop; gives how many decisions were made. A subject is built in the process that runs it.
Turn = Callable[[], int]
Subject = Callable[[Config], Turn]


def rate(subject: Subject, config: Config, seconds: float, processes: int = 1) -> float:
    """Gives the steps per second of `subject` in `processes` processes at once, after a warm-up."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    # Fresh interpreters: a forked one would keep this one's threads and what it has read of the variables.
    context = multiprocessing.get_context("spawn")
    rates: Any = context.Queue()
    together = context.Barrier(processes)
    arguments = (subject, config, seconds, together, rates)
    workers = [context.Process(target=_measure, args=arguments) for _ in range(processes)]
    try:
        # Ctrl-C reaches all of a terminal's processes, and each would print where it was: it is this one's to handle.
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for worker in workers:
                worker.start()
        finally:
            signal.signal(signal.SIGINT, interrupted)
        found = [_next(rates, workers) for _ in workers]
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        for worker in workers:
            worker.join(JOIN_S)  # by itself, since a vector environment has processes of its own to end
            worker.terminate()
    for value in found:
        if isinstance(value, Exception):
            raise value
    return float(sum(found))


def _next(rates: Any, workers: Sequence[BaseProcess]) -> Any:
    """Gives what the next worker puts; raises HeadraceError if one ended without a word."""
    while True:
        try:
            return rates.get(timeout=POLL_S)
        except queue.Empty:
            for worker in workers:
                if worker.exitcode:
                    raise HeadraceError(
                        f"a process that was measured ended with exit code {worker.exitcode}",
                        "a negative one is the signal that killed it: -9 may be for want of memory",
                    ) from None


def _measure(subject: Subject, config: Config, seconds: float, together: Barrier, rates: Any) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that a vector environment ends its own processes
    try:
        turn = subject(config)
        _run(turn, seconds * WARM_SHARE)
        together.wait()
        rates.put(_run(turn, seconds))
    except BrokenBarrierError:
        rates.put(0.0)  # another one failed, and says why
    except Exception as error:
        together.abort()
        rates.put(error)


def _run(turn: Turn, seconds: float) -> float:
    steps, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not steps:
        steps += turn()
    return steps / passed


def step_and_infer(config: Config) -> Turn:
    """The limit: env.envs environments, one forward pass and one sampled action each, and no unroll."""
    backend = make_backend(config.env, config.env.envs)
    act = _acting(make_actor(config.algorithm, config.network, backend.spec, config.run.seed), config.env.envs)
    rows = step_rows(backend.spec, config.env.envs)
    backend.reset(config.run.seed, rows.observation)

    def turn() -> int:
        action, _ = act(rows.observation)
        backend.step(action, *rows)
        return int(np.count_nonzero(rows.valid))

    return turn


def step_alone(config: Config) -> Turn:
    """The simulator alone: env.envs environments with random actions, by the same backend; no policy."""
    backend = make_backend(config.env, config.env.envs)
    rng, rows = np.random.default_rng(0), step_rows(backend.spec, backend.num_envs)
    chosen = [random_actions(backend.spec.action, backend.num_envs, rng) for _ in range(ACTIONS)]
    backend.reset(config.run.seed, rows.observation)
    turns = itertools.cycle(chosen)

    def turn() -> int:
        backend.step(next(turns), *rows)
        return int(np.count_nonzero(rows.valid))

    return turn


def step_infer_learn(config: Config) -> Turn:
    """The limit of training: the same with unrolls and updates, every process a learner of its own."""
    n = config.env.envs
    backend = make_backend(config.env, n)
    trainer = Trainer(config, backend.spec, ordinal=1)
    rollout = Rollout(backend.spec, trainer.policy.spec, config.rollout.unroll, n)
    act = _acting(trainer.policy, n)
    parts: list[Arrays] = []
    backend.reset(config.run.seed, rollout.observation_row())
    rollout.begin()

    def turn() -> int:
        while not rollout.complete:
            action, extras = act(rollout.observation_row())
            rollout.act({"action": action, **extras}, trainer.version)
            rollout.advance(backend.step(action, *rollout.targets()))
        parts.append(rollout.finish())
        if len(parts) < max(1, config.learner.batch):
            return 0
        steps = trainer.update(stage(parts), 0.0).steps
        parts.clear()
        return steps

    return turn


def numpy_cartpole(config: Config) -> Turn:
    """A plain numpy CartPole and MLP."""
    return NumpyCartPole(config.env.envs, tuple(config.network["hidden"])).step


def plain_env(config: Config) -> gymnasium.Env[Any, Any]:
    """Makes the environment as Gymnasium's users do: a game of Atari's with its wrappers for stacks of 4 x 84 x 84."""
    register(config.env.id, config.env.id)
    route_warnings(config.env.id)
    if not config.env.id.startswith(ATARI):
        return gymnasium.make(config.env.id, **config.env.kwargs)
    sticky = config.env.kwargs.get("repeat_action_probability", 0.25)
    game = gymnasium.make(config.env.id, frameskip=1, repeat_action_probability=sticky)
    return FrameStackObservation(AtariPreprocessing(game), 4)


def bare_loop(config: Config) -> Turn:
    """One Gymnasium environment stepped in a Python loop with random actions, reset by hand; no policy."""
    env = plain_env(config)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(ACTIONS)]
    env.reset(seed=config.run.seed)

    def turn() -> int:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return ACTIONS

    return turn


def stock_crafter(config: Config) -> Turn:
    """The crafter package's own environment in a Python loop with random actions; no policy."""
    # Its backend here plays the game itself and never makes one of these.
    env = importlib.import_module("crafter").Env(seed=config.run.seed)
    rng = np.random.default_rng(0)
    env.reset()

    def turn() -> int:
        _, _, ended, _ = env.step(int(rng.integers(env.action_space.n)))
        if ended:
            env.reset()
        return 1

    return turn


def async_vector_env(config: Config) -> Turn:
    """Gymnasium's AsyncVectorEnv of 8 environments with random actions; no policy."""
    envs = AsyncVectorEnv([partial(plain_env, config)] * VECTOR)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(ACTIONS)]
    envs.reset(seed=config.run.seed)
    ended = np.zeros(VECTOR, np.bool_)

    def turn() -> int:
        nonlocal ended
        steps = 0
        for action in actions:
            _, _, terminated, truncated, _ = envs.step(action)
            steps += VECTOR - int(np.count_nonzero(ended))
            ended = terminated | truncated
        return steps

    return turn


def _acting(actor: Actor, n: int) -> Callable[[Arrays], tuple[np.ndarray, Arrays]]:
    """Gives the function from observations [n, ...] to sampled actions and extras, the one an inference-server uses.

    Its noise is a generator's stream, which is cheaper than noise keyed by environment and step.
    """
    first, reward, env = torch.zeros(n, dtype=torch.bool), torch.zeros(n), torch.arange(n)
    in_numpy, rng = numpy_actor(actor), np.random.default_rng(0)

    @torch.inference_mode()
    def act(row: Arrays) -> tuple[np.ndarray, Arrays]:
        noise = rng.random((n, actor.noise_size), np.float32)
        if in_numpy is not None:
            answer = in_numpy.act(row, np.maximum(noise, TINY))
            return answer.pop("action"), answer
        observation = {name: torch.from_numpy(x) for name, x in row.items()}
        acted = actor.act(Seen(observation, first, reward, {}, torch.from_numpy(noise).clamp_min(TINY), env))
        return acted.action.numpy(), {f"extras.{name}": x.numpy() for name, x in acted.extras.items()}

    return act
