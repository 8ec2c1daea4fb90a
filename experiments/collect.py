"""`rheostat collect`: a dataset with its card, and progress on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from core.metrics import Progress
from envs import collect as maker
from envs.collect import Recipe
from experiments import runs
from experiments.runs import Stopped


def collect(recipe: Recipe, out: Path | None = None, workers: int = 0, quiet: bool = False) -> dict[str, Any]:
    """Make the dataset of a recipe; returns its card.  Raises: ConfigError for whatever is refused."""
    maker.check(recipe)
    length = f"-t{recipe.max_steps}" if recipe.max_steps else ""
    file = f"{recipe.task.replace('/', '-')}-n{recipe.noise:g}-e{recipe.episodes}{length}-s{recipe.seed}.npz"
    out = out or Path("data") / file
    progress = Progress(recipe.episodes, "episodes", quiet)
    progress.say(f"scripted expert of {recipe.task}, noise {recipe.noise:g} -> {out}")
    progress.stage("playing")
    begun = False

    def stop(number: int, _frame: object) -> None:
        raise Stopped(number, f"what was played is kept: run the same command again to go on with {out}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def report(done: int) -> None:
        nonlocal begun
        if not begun:
            progress.start_at(done)
            begun = True
        progress.advance(done)

    try:
        card = maker.collect(recipe, out, os.cpu_count() if workers == 0 else workers, runs.provenance(), report)
    finally:
        progress.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    progress.say(
        f"{out}: {card['episodes']} episodes, {card['transitions']:,} transitions, "
        f"return {card['return']['mean']:.1f} ({card['return']['min']:.1f} to {card['return']['max']:.1f}), "
        f"success {card['success']:.2f}"
    )
    return card
