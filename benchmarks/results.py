"""What the algorithms reach: trains, evaluates and plots jobs over several seeds, and writes docs/results.md's table.

Of each run, figures and curve are kept in docs/results; table and pictures are made from these. What is kept there is
not made again, unless --again is given; nor is what has been evaluated under --runs, so an interrupted script goes on
where it was.

A run that was stopped with Ctrl-C before its end is evaluated, and its row marked, if --stopped is given.

    python -m benchmarks.results [--only NAME ...] [--runs runs/results] [--again] [--stopped]
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.page import write_sections

PAGE, KEPT = Path("docs/results.md"), Path("docs/results")
HEADER = (
    "| environment | algorithm | command | steps | frames | wall time (s) | evaluation, each seed | reference "
    "| reached |\n|---|---|---|---|---|---|---|---|---|"
)
ZOO = "RL Baselines3 Zoo"
SEEDS = 3
CURVE, POINTS = ("steps", "seconds", "episode_return"), 200


class Trained(Protocol):
    """What a run is made from: the name that it is kept under, and the command that makes it."""

    @property
    def name(self) -> str: ...

    def command(self, seed: int | str) -> str: ...


@dataclass(frozen=True, slots=True)
class Job:
    """A config, the mean that it is held against and whose it is, and the picture that shows its curves.

    Where `config` names another file than configs/<name>.yaml, `settings` are what is changed of it.
    """

    name: str
    environment: str
    algorithm: str
    reference: float
    source: str
    plot: str
    config: str = ""
    settings: str = ""
    seeds: int = SEEDS

    def command(self, seed: int | str) -> str:
        given = f"configs/{self.config or self.name}.yaml {self.settings}".strip()
        return f"headrace train {given} run.seed={seed}"


def one_for_all(environment: str, random: float, plot: str) -> Job:
    """Gives the job of the one set of settings on an environment, held against a random policy."""
    name = f"one_for_all_{environment.partition('-')[0].rpartition('/')[2].lower()}"
    settings = f"env.id={environment}"
    return Job(name, environment, "one_for_all", random, "random", plot, "one_for_all", settings, seeds=1)


HIDDEN = "CartPole-v1 without velocities"
FAST = "PPO, one epoch"
ZOO_PPO = f"its PPO, {ZOO}"
BREAKOUT = "MinAtar/Breakout-v1"
SPREAD = "MPE's simple spread, three agents"
REACHING, WITHOUT_HINDSIGHT = "Reacher-v5, sparse goals", "replay.tables.experience.her.k=0"
WITHOUT_CURIOSITY = ("mountaincar_ppo_icm", "algorithm.curiosity=null")
JOBS = (
    Job("cartpole_ppo", "CartPole-v1", "PPO", 500, ZOO, "cartpole"),
    Job("cartpole_a2c", "CartPole-v1", "A2C", 500, ZOO, "cartpole"),
    Job("cartpole_ppo_lstm", "CartPole-v1", "PPO, LSTM", 500, "the limit", "cartpole"),
    Job("cartpole_ppo_async", "CartPole-v1", "PPO, asynchronous", 500, "the limit", "cartpole"),
    Job("cartpole_appo", "CartPole-v1", "APPO", 500, "the limit", "cartpole"),
    Job("cartpole_impala", "CartPole-v1", "IMPALA", 500, "the limit", "cartpole"),
    Job("cartpole_laser", "CartPole-v1", "LASER, 7 replayed to 1", 500, "the limit", "cartpole"),
    Job("cartpole_dqn", "CartPole-v1", "DQN", 500, ZOO, "cartpole-values"),
    Job("cartpole_c51", "CartPole-v1", "C51", 500, "the limit", "cartpole-values"),
    Job("cartpole_qrdqn", "CartPole-v1", "QR-DQN", 500, ZOO, "cartpole-values"),
    Job("cartpole_rainbow", "CartPole-v1", "Rainbow", 500, "the limit", "cartpole-values"),
    Job("cartpole_apex", "CartPole-v1", "DQN, Ape-X", 500, "the limit", "cartpole-values"),
    Job("cartpole_sac", "CartPole-v1", "SAC, discrete", 500, "the limit", "cartpole-values"),
    Job("cartpole_positions_ppo_lstm", HIDDEN, "PPO, LSTM", 500, "the limit", "cartpole-positions"),
    Job("cartpole_positions_impala_lstm", HIDDEN, "IMPALA, LSTM", 475, "95 % of the limit", "cartpole-positions"),
    Job("cartpole_positions_r2d2", HIDDEN, "R2D2", 475, "95 % of the limit", "cartpole-positions"),
    Job("acrobot_ppo", "Acrobot-v1", "PPO", -73.5, ZOO, "acrobot"),
    Job("acrobot_a2c", "Acrobot-v1", "A2C", -83, ZOO, "acrobot"),
    Job("acrobot_dqn", "Acrobot-v1", "DQN", -77, ZOO, "acrobot"),
    Job("acrobot_appo", "Acrobot-v1", "APPO", -73.5, ZOO_PPO, "acrobot"),
    Job("acrobot_impala", "Acrobot-v1", "IMPALA", -73.5, ZOO_PPO, "acrobot"),
    Job("acrobot_laser", "Acrobot-v1", "LASER", -73.5, ZOO_PPO, "acrobot"),
    Job("pendulum_ppo", "Pendulum-v1", "PPO", -172, ZOO, "pendulum"),
    Job("pendulum_sac", "Pendulum-v1", "SAC", -157, ZOO, "pendulum"),
    Job("pendulum_td3", "Pendulum-v1", "TD3", -152, ZOO, "pendulum"),
    Job("pendulum_ddpg", "Pendulum-v1", "DDPG", -152, ZOO, "pendulum"),
    Job("pendulum_tqc", "Pendulum-v1", "TQC", -157, ZOO, "pendulum"),
    Job("pendulum_a2c", "Pendulum-v1", "A2C", -172, ZOO_PPO, "pendulum"),
    Job("pendulum_appo", "Pendulum-v1", "APPO", -172, ZOO_PPO, "pendulum"),
    Job("pendulum_impala", "Pendulum-v1", "IMPALA", -172, ZOO_PPO, "pendulum"),
    Job("pendulum_laser", "Pendulum-v1", "LASER", -172, ZOO_PPO, "pendulum"),
    Job("lunarlander_ppo", "LunarLander-v3", "PPO", 242, ZOO, "lunarlander"),
    Job("lunarlander_a2c", "LunarLander-v3", "A2C", 156, ZOO, "lunarlander"),
    Job("lunarlander_dqn", "LunarLander-v3", "DQN", 154, ZOO, "lunarlander"),
    Job("lunarlander_appo", "LunarLander-v3", "APPO", 242, ZOO_PPO, "lunarlander"),
    Job("lunarlander_impala", "LunarLander-v3", "IMPALA", 242, ZOO_PPO, "lunarlander"),
    Job("lunarlander_laser", "LunarLander-v3", "LASER", 242, ZOO_PPO, "lunarlander"),
    Job("lunarlander_r2d2", "LunarLander-v3", "R2D2", 154, f"its DQN, {ZOO}", "lunarlander", seeds=1),
    Job("lunarlander_continuous_ppo", "LunarLanderContinuous-v3", "PPO", 271, ZOO, "lunarlander-continuous"),
    Job("lunarlander_sac", "LunarLanderContinuous-v3", "SAC", 260, ZOO, "lunarlander-continuous"),
    Job("lunarlander_td3", "LunarLanderContinuous-v3", "TD3", 207, ZOO, "lunarlander-continuous"),
    Job("lunarlander_ddpg", "LunarLanderContinuous-v3", "DDPG", 230, ZOO, "lunarlander-continuous"),
    Job("minatar_breakout_ppo", BREAKOUT, "PPO", 0.4, "a random policy", "minatar"),
    Job("minatar_breakout_a2c", BREAKOUT, "A2C", 0.4, "a random policy", "minatar"),
    Job("minatar_breakout_impala", BREAKOUT, "IMPALA", 0.4, "a random policy", "minatar"),
    Job("minatar_breakout_appo", BREAKOUT, "APPO", 0.4, "a random policy", "minatar", seeds=1),
    Job("minatar_breakout_laser", BREAKOUT, "LASER", 0.4, "a random policy", "minatar", seeds=1),
    Job("minatar_space_invaders_ppo", "MinAtar/SpaceInvaders-v1", "PPO", 4.2, "a random policy", "minatar-invaders"),
    Job("minatar_breakout_dqn", BREAKOUT, "DQN", 0.4, "a random policy", "minatar"),
    Job("minatar_breakout_rainbow", BREAKOUT, "Rainbow", 0.4, "a random policy", "minatar"),
    Job("minatar_breakout_r2d2", BREAKOUT, "R2D2", 0.4, "a random policy", "minatar", seeds=1),
    Job("minatar_breakout_sac", BREAKOUT, "SAC, discrete", 0.4, "a random policy", "minatar", seeds=1),
    Job("minatar_space_invaders_dqn", "MinAtar/SpaceInvaders-v1", "DQN", 4.2, "a random policy", "minatar-invaders"),
    Job("halfcheetah_ppo", "HalfCheetah-v5", "PPO", 5819, ZOO, "halfcheetah"),
    Job("halfcheetah_a2c", "HalfCheetah-v5", "A2C", 3041, ZOO, "halfcheetah"),
    Job("halfcheetah_appo", "HalfCheetah-v5", "APPO", 5819, ZOO_PPO, "halfcheetah", seeds=1),
    Job("halfcheetah_impala", "HalfCheetah-v5", "IMPALA", 5819, ZOO_PPO, "halfcheetah", seeds=1),
    Job("halfcheetah_sac", "HalfCheetah-v5", "SAC", 9535, ZOO, "halfcheetah"),
    Job("halfcheetah_td3", "HalfCheetah-v5", "TD3", 9656, ZOO, "halfcheetah"),
    Job("halfcheetah_ddpg", "HalfCheetah-v5", "DDPG", 10374, ZOO, "halfcheetah"),
    Job("hopper_ppo", "Hopper-v5", "PPO", 2410, ZOO, "hopper"),
    Job("hopper_sac", "Hopper-v5", "SAC", 2326, ZOO, "hopper"),
    Job("hopper_td3", "Hopper-v5", "TD3", 3606, ZOO, "hopper"),
    Job("pong_ppo", "Pong", "PPO", 20.4, ZOO, "pong", seeds=1),
    Job("pong_impala", "Pong", "IMPALA, 3 replayed to 1", 20, "Espeholt et al. (2018)", "pong", seeds=1),
    Job("pong_dqn", "Pong", "DQN", 20.3, ZOO, "pong", seeds=1),
    Job("fast_halfcheetah", "HalfCheetah-v5", FAST, 5819, ZOO, "halfcheetah-fast", "bench/halfcheetah-v5_ppo", seeds=1),
    Job("fast_pong", "Pong", FAST, 20.4, ZOO, "pong", "bench/pong-v5_ppo", seeds=1),
    Job("crafter_ppo", "Crafter", "PPO", 4.2, "PPO in Hafner (2021)", "crafter"),
    Job("mountaincar_ppo_icm", "MountainCar-v0", "PPO, curiosity", -110.4, ZOO, "mountaincar"),
    Job("mountaincar_ppo_plain", "MountainCar-v0", "PPO", -110.4, ZOO, "mountaincar", *WITHOUT_CURIOSITY),
    Job("spread_ppo", SPREAD, "PPO", -27, "a random policy", "spread"),
    Job("spread_a2c", SPREAD, "A2C", -27, "a random policy", "spread", seeds=1),
    Job("spread_appo", SPREAD, "APPO", -27, "a random policy", "spread", seeds=1),
    Job("spread_impala", SPREAD, "IMPALA", -27, "a random policy", "spread", seeds=1),
    Job("spread_laser", SPREAD, "LASER", -27, "a random policy", "spread", seeds=1),
    Job("spread_dqn", SPREAD, "DQN", -27, "a random policy", "spread-values", seeds=1),
    Job("spread_r2d2", SPREAD, "R2D2", -27, "a random policy", "spread-values", seeds=1),
    Job("spread_sac", SPREAD, "SAC, discrete", -27, "a random policy", "spread-values", seeds=1),
    Job("reaching_sac", REACHING, "SAC, hindsight", -15, "random: -49", "reaching"),
    Job("reaching_sac_plain", REACHING, "SAC", -15, "random: -49", "reaching", "reaching_sac", WITHOUT_HINDSIGHT),
    one_for_all("CartPole-v1", 22, "cartpole-values"),
    one_for_all("Pendulum-v1", -1250, "pendulum"),
    one_for_all("LunarLander-v3", -180, "lunarlander"),
    one_for_all("LunarLanderContinuous-v3", -220, "lunarlander-continuous"),
    one_for_all("HalfCheetah-v5", -280, "halfcheetah"),
    one_for_all(BREAKOUT, 0.4, "minatar"),
)


def headrace(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "services.control.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def measure(job: Trained, seed: int, runs: Path, stopped: bool = False) -> dict[str, Any]:
    """Trains and evaluates one seed, unless that was done before; gives what its figures.json holds.

    A run that was stopped is an error that says what to do, or evaluated as it is if `stopped` allows it.
    """
    run = runs / f"{job.name}-{seed}"
    figures = run / "figures.json"
    if not figures.exists():
        wall: float | None = None
        if not (run / "result.json").exists():
            began = time.monotonic()
            headrace(*job.command(seed).split()[1:], f"run.dir={runs}", f"run.name={run.name}")
            wall = time.monotonic() - began
        result = json.loads((run / "result.json").read_text())
        early = result["outcome"] == "stopped"
        if early and not stopped:
            raise SystemExit(f"{run} was stopped: headrace train --resume {run}, or --stopped to take it as it is")
        headrace("evaluate", str(run), "--episodes", "100")
        evaluation = json.loads((run / "evaluation.json").read_text())
        # A run that was resumed, or only evaluated here, has no clock but its own.
        found = {"steps": result["steps"], "frames": result["frames"], "wall_s": wall or result["seconds"]}
        found["stopped"] = early
        figures.write_text(json.dumps(found | {"mean": evaluation["mean"], "std": evaluation["std"]}))
    return dict(json.loads(figures.read_text()))


def keep(run: Path) -> None:
    """Copies a run's figures, and some points of its curve, to where the pages are."""
    folder = KEPT / run.name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "figures.json", folder)
    with (run / "progress.csv").open(newline="") as lines:
        rows = [[row[name] for name in CURVE] for row in csv.DictReader(lines)]
    thinned = rows[:: max(1, len(rows) // POINTS)]
    with (folder / "progress.csv").open("w", newline="") as file:
        csv.writer(file).writerows([CURVE, *thinned, *rows[-1:]])


def kept(job: Job) -> list[Path]:
    """Gives the folders of a job's seeds, in their order."""
    return sorted(path.parent for path in KEPT.glob(f"{job.name}-[0-9]*/figures.json"))


def row(job: Job, measured: list[dict[str, Any]]) -> str:
    """One line of the table; a mean over seeds more than one std of episodes below the reference is short."""

    def each(key: str) -> str:
        return ", ".join(f"{m[key]:,.0f}" for m in measured)

    evaluations = ", ".join(f"{m['mean']:.1f} ± {m['std']:.1f}" for m in measured)
    # What a run that was stopped might have reached is not for its own std to say.
    early = any(m.get("stopped") for m in measured)
    mean = statistics.fmean(m["mean"] for m in measured)
    std = 0.0 if early else statistics.fmean(m["std"] for m in measured)
    seeds = "" if len(measured) >= SEEDS else f", {len(measured)} of {SEEDS} seeds"
    seeds += ", stopped early" if early else ""
    reached = "above" if mean >= job.reference else "within one std" if mean + std >= job.reference else "**short**"
    cells = (job.environment, job.algorithm, f"`{job.command('N')}`", each("steps"), each("frames"), each("wall_s"))
    judged = (evaluations, f"{job.reference:g}, {job.source}", f"{mean:.1f}: {reached}{seeds}")
    return f"| {' | '.join((*cells, *judged))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[job.name for job in JOBS], help="these jobs, not all")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--again", action="store_true", help="also what docs/results has")
    parser.add_argument("--stopped", action="store_true", help="take a run that was stopped as it is")
    arguments = parser.parse_args()
    for job in JOBS:
        if arguments.only is None or job.name in arguments.only:
            for seed in range(1, job.seeds + 1):
                if arguments.again or not (KEPT / f"{job.name}-{seed}" / "figures.json").exists():
                    measure(job, seed, arguments.runs, arguments.stopped)
                    keep(arguments.runs / f"{job.name}-{seed}")
            print(_row_of(job), flush=True)
    done = [job for job in JOBS if kept(job)]
    pictures = []
    for plot in dict.fromkeys(job.plot for job in done):
        shown = [job for job in done if job.plot == plot]
        headrace("plot", *(str(folder) for job in shown for folder in kept(job)), "--out", f"docs/results-{plot}.png")
        where = " and ".join(dict.fromkeys(job.environment for job in shown))
        said = f"{'; '.join(dict.fromkeys(job.algorithm for job in shown))}, on {where}"
        pictures.append(f"{said}:\n\n![{said}](results-{plot}.png)")
    table = "\n".join([HEADER, *map(_row_of, done)])
    write_sections(PAGE, {"table": table, "curves": "\n\n".join(pictures)})


def _row_of(job: Job) -> str:
    return row(job, [json.loads((folder / "figures.json").read_text()) for folder in kept(job)])


if __name__ == "__main__":
    main()
