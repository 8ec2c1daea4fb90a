"""`rheostat data`: what a dataset holds, and datasets of others in our own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.config import ConfigError, UnknownName
from core.dataset import DataError
from envs import datasets, registry, scores

SAID = ("transitions", "episodes", "action_range", "terminated", "notes", "parents")  # said in other lines


def describe(path: str, task: str | None = None, max_steps: int | None = None) -> str:
    """The card of a dataset of any format, as text; the arrays are read and checked."""
    _check(task, max_steps)
    arrays, card = datasets.load(path, task, max_steps)
    return text(str(path), {**card, **datasets.describe(arrays)})  # cards of old versions say less


def convert(path: str, out: Path, task: str | None = None, max_steps: int | None = None) -> str:
    """Write a dataset in our format; returns its card as text.

    Args: task: what it is from, where neither the file nor its name says.
    Raises: ConfigError for an `out` that exists; DataError.
    """
    from experiments import runs

    _check(task, max_steps)
    if out.exists() or out.suffix != ".npz":
        raise ConfigError(f"{out} exists or does not end in .npz; choose another --out")
    arrays, card = datasets.load(path, task, max_steps)
    if task and card["task"] not in (None, task):
        raise DataError(f"{path} was made on {card['task']}, not on {task}; leave --task out")
    kept = {key: card[key] for key in ("format", "source", "notes") if key in card}
    made = {"task": card["task"] or task, "converted from": {**kept, "sha256": card["sha256"]}, **runs.provenance()}
    return text(str(out), datasets.write(out, arrays, made))


def _check(task: str | None, max_steps: int | None) -> None:
    if task is not None:
        registry.check(task)
    if max_steps is not None and max_steps < 2:
        raise ConfigError(f"--max-steps {max_steps} must be at least 2")


def text(name: str, card: dict[str, Any]) -> str:
    """A card for people."""
    action = "discrete" if not card["action"] else f"{card['action'][0]} from {_range(card['action_range'])}"
    lines = {
        "format": card["format"],
        "task": card["task"] or "unknown",
        "size": f"{card['transitions']:,} transitions in {card['episodes']:,} episodes",
        "state": "x".join(map(str, card["state"])),
        "action": action,
        "return": _quantiles(card["return"]),
        "length": _quantiles(card["length"]),
        "success": f"{card['success']:.3f} of the episodes",
        "ended": f"{card['terminated']:,} episodes end their task, the others are cut",
        "sha256": f"{card['sha256']} of the arrays",
    }
    if (score := _score(card)) is not None:
        lines["return"] += f"; normalised score {score:.1f}"
    shown = [f"  {key:<9} {value}" for key, value in lines.items()]
    shown += [f"  {key:<9} {_short(value)}" for key, value in card.items() if key not in (*lines, *SAID)]
    shown += [f"  parent    {_parent(parent)}" for parent in card.get("parents", [])]
    return "\n".join([name, *shown, *(f"  note      {note}" for note in card.get("notes", []))])


def _parent(parent: dict[str, Any]) -> str:
    """A dataset that went into a mixture; `rheostat data describe` of its own file says the rest."""
    return (
        f"{parent['file']}: {parent['share']:.1%} of the transitions, {parent['episodes']} of its episodes, "
        f"mean return {parent['card']['return']['mean']:,.1f} as a whole, sha256 {parent['sha256'][:16]}..."
    )


def _range(ends: list[float]) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}"


def _quantiles(of: dict[str, float]) -> str:
    return ", ".join(f"{key} {of[key]:,.1f}" for key in ("min", "q25", "median", "q75", "max", "mean"))


def _score(card: dict[str, Any]) -> float | None:
    """Of the mean return, where the task has one."""
    try:
        return scores.normalised(card["task"], card["return"]["mean"]) if card["task"] else None
    except UnknownName:
        return None


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items() if part not in (None, [], {}))
    if isinstance(value, list):
        return "; ".join(map(_short, value))
    return str(value)
