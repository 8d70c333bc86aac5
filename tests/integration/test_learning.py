"""Agents learn through the real pipeline: each job stops by itself once its training mean is well above chance.

An overlay's own job is four processes; one with settings on top has them in one, which starts sooner.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import Job

from common.config import CONFIGS

# Small networks and batches: an update for every step is most of what the replayed families cost.
SMALL = (
    "network.hidden=[64,64] learner.batch=64 learner.per_request=8 "
    "replay.tables.experience.samples_per_insert=64 replay.tables.experience.error_buffer=1024"
)
# Chance is 22 on CartPole, -500 on Acrobot, -180 on LunarLander, -1250 on Pendulum, 0.4 on Breakout; a job has over
# twice the steps that seeds 1 to 5 need (on Acrobot, LunarLander and without velocities: 1 to 3).
# A name is an overlay's, with settings on top of it if it has any; of those with settings, twice what seed 1 needs.
# A rate that fell to zero with the steps would make a job's budget change how it learns. A mean over fewer episodes is
# for jobs of few steps: one that learns fast has few episodes.
JOBS = {
    "cartpole_ppo": (195, 80_000),
    "cartpole_a2c": (100, 100_000),
    "cartpole_ppo_lstm": (100, 60_000),
    "cartpole_ppo_async": (195, 120_000),
    "cartpole_appo": (195, 100_000),
    "cartpole_impala": (195, 120_000),
    "cartpole_laser": (100, 100_000),
    "cartpole_positions_impala_lstm": (100, 150_000),
    "cartpole_positions_ppo_lstm": (100, 50_000),
    "acrobot_ppo": (-300, 150_000),
    "lunarlander_ppo": (-120, 200_000),
    "pendulum_ppo": (-700, 80_000),
    "minatar_breakout_ppo": (2.5, 200_000),
    "minatar_breakout_a2c": (2.5, 100_000),
    "cartpole_ppo algorithm.rollback={}": (60, 40_000),
    "cartpole_ppo algorithm.curiosity={}": (60, 40_000),
    "cartpole_appo algorithm.vtrace=true": (60, 40_000),
    "cartpole_ppo_lstm network.lstm=0 network.gru=64": (60, 40_000),
    "cartpole_dqn stop.episodes=40": (60, 20_000),
    "cartpole_rainbow stop.episodes=40": (60, 15_000),
    f"cartpole_sac stop.episodes=40 {SMALL}": (60, 15_000),
    f"pendulum_td3 stop.episodes=10 {SMALL}": (-500, 16_000),
}


@pytest.mark.parametrize("job", [pytest.param(job, id=job.removesuffix(SMALL).strip()) for job in JOBS])
async def test_a_job_learns(job: str, tmp_path: Path) -> None:
    goal, steps = JOBS[job]
    name, *settings = job.split()
    engine = ["--engine", "inline"] if settings else []
    overrides = [
        *engine,
        *settings,
        f"stop.episode_return={goal}",
        f"stop.steps={steps}",
        "learner.lr_schedule=constant",
    ]
    with Job(CONFIGS / f"{name}.yaml", tmp_path / "run", overrides) as running:
        assert await running.ended() == 0, running.text()
        result = running.result()
        assert result["outcome"] == "solved", f"mean return {result['episode_return']} after {result['steps']} steps"
