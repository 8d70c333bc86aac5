"""What `headrace tune` does with its arguments: one tuning, from the job's config to the overlay on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from common.config import Config
from services.control.targets import check_target
from services.control.tune.search import Search
from services.control.tune.tuner import Tuning, bottleneck, point_of, space_of, tune, write
from services.control.tune.view import make_view
from services.control.words import count


def tune_job(config: Config, output: Path, minutes: float, seconds: float) -> None:
    """Tunes `config` and writes the overlay; Ctrl-C ends the search and writes the best so far."""
    check_target("--output", output)
    tuning = Tuning(config, Search(space_of(config), point_of(config)), minutes, seconds)
    console = Console()
    view = make_view(console)
    try:
        asyncio.run(tune(tuning, view))
    except KeyboardInterrupt:
        console.print("stopped; the best so far counts")
    finally:
        view.close()
    write(tuning, output)
    best = tuning.search.best
    assert best is not None  # or `write` would have said so
    console.print(
        f"[bold]{count(tuning.search.rate(best))} steps/s[/]  {bottleneck(tuning.busy[best])}", soft_wrap=True
    )
    console.print(f"wrote {output}; train with: headrace train {output}", soft_wrap=True)
