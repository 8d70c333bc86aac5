"""What Stable-Baselines3's own A2C reaches on LunarLander with the settings and the steps of the reference, by seed.

python -m benchmarks.lander [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from benchmarks.page import write_sections
from benchmarks.results import PAGE
from benchmarks.solve import peer_python

SCRIPT = Path(__file__).resolve().parent / "peers" / "sb3_lander.py"


def play(seed: int) -> tuple[float, float]:
    """Trains one seed; gives the mean and the standard deviation of its 100 greedy episodes."""
    done = subprocess.run([peer_python(), SCRIPT, str(seed)], capture_output=True, text=True, check=True)
    mean, std = json.loads(done.stdout.strip().splitlines()[-1])
    return mean, std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    played = ", ".join(f"{mean:.1f} ± {std:.1f}" for mean, std in map(play, range(1, parser.parse_args().seeds + 1)))
    text = f"Stable-Baselines3's own A2C with the reference's settings and steps, a seed each: {played}."
    write_sections(PAGE, {"lander": text})


if __name__ == "__main__":
    main()
