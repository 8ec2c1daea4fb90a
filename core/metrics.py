"""What a run tells: JSON lines as the source of truth, a live display, optional sinks.  Imports no jax."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.config import ConfigError


def _plain(value: Any) -> Any:
    """A JSON value; what is not a finite number becomes null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def write_json(path: str | Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    path = Path(path)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(_plain(value), indent=2) + "\n")
    os.replace(part, path)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """All complete rows of a JSON-lines file; a last line that was cut off by a kill is left out."""
    path = Path(path)
    lines = (path.read_text() if path.exists() else "").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        if line.endswith("\n"):
            try:
                row = json.loads(line)
                rows.append({**row, "step": int(row["step"]), "seed": int(row["seed"])})
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path} is damaged in line {number} ({error!r}); restore or remove it") from None
    return rows


class Lines:
    """An append-only JSON-lines file of rows with a "step"."""

    def __init__(self, path: str | Path, resume_at: int | None = None):
        """Args: resume_at: drop the rows after this step, which a resumed run writes again."""
        self.path = Path(path)
        if self.path.exists():  # a last line that a kill cut off goes in any case
            kept = [row for row in read_lines(self.path) if resume_at is None or row["step"] <= resume_at]
            part = self.path.with_suffix(".part")
            part.write_text("".join(json.dumps(row) + "\n" for row in kept))
            os.replace(part, self.path)

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        with self.path.open("a") as file:
            file.write("".join(json.dumps(_plain(row)) + "\n" for row in rows))


SINKS = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # kind -> the module that its extra installs


def require_sink(kind: str) -> None:
    """Raises: ConfigError naming the extra to install."""
    if importlib.util.find_spec(SINKS[kind]) is None:
        raise ConfigError(f"the sink '{kind}' needs its extra: make install EXTRAS=dev,{kind}")


class TensorBoard:
    """Copies numbers into event files, one folder per seed."""

    def __init__(self, folder: Path, name: str):
        self._folder, self._writers = folder / "tensorboard", {}

    def write(self, row: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        seed = str(row["seed"])
        if seed not in self._writers:
            self._writers[seed] = SummaryWriter(str(self._folder / seed))
        for key, value in _numbers(row).items():
            self._writers[seed].add_scalar(key, value, row["step"])
        self._writers[seed].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class Wandb:
    """Copies numbers to Weights & Biases, all seeds of a run into one."""

    def __init__(self, folder: Path, name: str):
        import wandb

        self._run = wandb.init(project="rheostat", name=name, id=name, dir=str(folder), resume="allow")

    def write(self, row: dict[str, Any]) -> None:
        self._run.log({f"seed {row['seed']}/{key}": v for key, v in _numbers(row).items()}, step=row["step"])

    def close(self) -> None:
        self._run.finish()


def sink(kind: str, folder: Path, name: str) -> TensorBoard | Wandb:
    """Where rows are copied besides the JSON lines: `write(row)`, `close()`."""
    require_sink(kind)
    return {"tensorboard": TensorBoard, "wandb": Wandb}[kind](folder, name)


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, float) and math.isfinite(value)}


class Progress:
    """Stages with speed and time left: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, unit: str = "steps", quiet: bool = False):
        self.total, self.unit = total, unit
        self._bar = self._live = None
        self._began = self._said = time.monotonic()
        self._offset, self._note = 0, ""
        if quiet:
            self._print = lambda text: None
            return
        self._print = lambda text: print(text, flush=True)
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            self._live = Progress(
                SpinnerColumn(), TextColumn("{task.fields[stage]:<10}"), BarColumn(bar_width=30),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit), TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self._live.start()
            self._bar = self._live.add_task("", total=total, stage="starting", speed="", note="")
            self._print = self._live.console.print

    def stage(self, name: str) -> None:
        """Name what is going on now; compiling is a stage of its own."""
        if self._live:
            self._live.update(self._bar, stage=name)

    def start_at(self, done: int) -> None:
        """Begin counting here."""
        self._offset = done
        self._began = time.monotonic()

    def advance(self, done: int, note: str = "", speed: float | None = None) -> None:
        """Args: done: how many of the total; note: a few numbers worth seeing; speed: per second of the work alone,
        default all time since the start, by which the time left is reckoned."""
        now = time.monotonic()
        pace = (done - self._offset) / max(now - self._began, 1e-9)
        speed = pace if speed is None else speed
        if self._live:
            self._live.update(self._bar, completed=done, speed=f"{speed:,.0f}/s", note=note)
        elif now - self._said > 10 or done >= self.total or note != self._note:
            self._said, self._note = now, note
            left = f"{(self.total - done) / pace:,.0f} s left" if pace else ""
            self._print(f"{done:>9,}/{self.total:,} {self.unit}  {speed:,.0f}/s  {left}  {note}")

    def say(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        if self._live:
            self._live.stop()
