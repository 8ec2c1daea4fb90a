"""`rheostat data`: what a dataset holds, and datasets of others in our own format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from core.config import ConfigError, UnknownName
from core.dataset import DataError
from envs import datasets, measures, registry, scores
from envs.readers import formats
from envs.readers.files import many

SAID = (  # elsewhere
    *("transitions", "episodes", "action_range", "terminated"),
    *("notes", "players", "parents", "commit", "changed"),
)
EMPTY = (None, "", [], {})
UNSET = ("episodes", "transitions", "max_steps")  # fields of a recipe that 0 leaves open


def describe(path: str, task: str | None = None, max_steps: int | None = None, reference: str | None = None) -> str:
    """The card of a dataset of any format, as text; the arrays are read and checked.

    Args: task: what it is from, where neither the file nor its name says; max_steps: see `envs.datasets.load`;
        reference: another dataset of the task, for the coverage of `envs.measures`.
    Raises: ConfigError; DataError.
    """
    arrays, card = _load(path, task, max_steps)
    card |= datasets.describe(arrays, card["task"])  # cards of old versions say less
    if reference:
        other, its_card = _load(reference, card["task"], max_steps)
        saco = measures.coverage(datasets.index(arrays, path), datasets.index(other, reference))
        card["measures"]["SACo"] = {"value": saco, "reference": reference, "sha256": its_card["sha256"]}
    return text(str(path), card)


def convert(path: str, out: Path, task: str | None = None, max_steps: int | None = None) -> str:
    """Write a dataset in our format; returns its card as text.

    Args: task: what it is from, where neither the file nor its name says.
    Raises: ConfigError for an `out` that exists or cannot be made; DataError.
    """
    from experiments import runs

    _check_out(out)
    arrays, card = _load(path, task, max_steps)
    notes = [note for note in card.get("notes", []) if note != datasets.UNNAMED]  # the card says "task"
    kept = {key: card[key] for key in ("format", "source") if key in card}
    made = {"task": card["task"], "converted from": {**kept, "notes": notes, "sha256": card["sha256"]}}
    return text(str(out), datasets.write(out, arrays, {**made, **runs.provenance()}))


def _check_out(out: Path) -> None:
    """Before anything is read, which may take minutes."""
    if out.suffix != ".npz":
        raise ConfigError(f"{out} does not end in .npz; choose another --out")
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists; choose another --out, or delete it to make it anew")
    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise ConfigError(f"{out}: {above} is a file, not a folder; choose another --out")


def _load(path: str, task: str | None, max_steps: int | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and a card that says `task`, which is asked for a spec unless a card of ours said it already."""
    if task is not None:
        registry.check(task)
    if max_steps is not None and max_steps < 2:
        raise ConfigError(f"--max-steps {max_steps} must be at least 2")
    arrays, card = datasets.load(path, task, max_steps)
    said = card["task"]
    if task and said not in (None, task):
        raise DataError(f"{path} was made on {said}, not on {task}; leave --task out")
    if not (of := said or task):
        return arrays, card
    if not said or not card["format"].startswith(formats.OURS):
        env = registry.make(of)
        env.close()
        try:
            datasets.check(arrays, path, env.spec)
        except DataError as error:
            advice = f"the file or its name says that it is from {of}: rename it" if said else "--task names another"
            raise DataError(f"{error}; {advice}") from None
    notes = [note for note in card.get("notes", []) if note != datasets.UNNAMED]
    return arrays, {**card, "task": of, "notes": notes}


def text(name: str, card: dict[str, Any]) -> str:
    """A card for people."""
    action = "discrete" if not card["action"] else f"{card['action'][0]} from {_range(card['action_range'])}"
    lines = {
        "format": card["format"],
        "task": card["task"] or "unknown",
        "size": f"{many(card['transitions'], 'transition')} in {many(card['episodes'], 'episode')}",
        "state": "x".join(map(str, card["state"])),
        "action": action,
        "return": _quantiles(card["return"]),
        "length": _quantiles(card["length"]),
        "success": f"{card['success']:.3f} of the episodes",
        "ended": f"{many(card['terminated'], 'episode')} by the end of the task, the others by a cut",
        "measures": _measures(card["measures"]),
        "sha256": f"{card['sha256']} of the arrays",
    }
    if (score := _score(card)) is not None:
        lines["return"] += f"; normalised score {score:.1f}"
    if card.get("commit"):
        lines["commit"] = card["commit"] + (", with changes" if card.get("changed") else "")
    lines |= {key: _short(value) for key, value in card.items() if key not in (*lines, *SAID) and value not in EMPTY}
    shown = [f"  {key:<9} {value}" for key, value in lines.items()]
    shown += [f"  player    {_short(player)}" for player in card.get("players", [])]
    shown += [f"  parent    {_parent(parent)}" for parent in card.get("parents", [])]
    return "\n".join([name, *shown, *(f"  note      {note}" for note in card.get("notes", []))])


def _parent(parent: dict[str, Any]) -> str:
    """A dataset that went into a mixture; `rheostat data describe` of its own file says the rest."""
    return (
        f"{parent['file']}: {parent['share']:.1%} of the transitions, {parent['episodes']} of its episodes, "
        f"mean return {parent['card']['return']['mean']:,.1f} as a whole, sha256 {parent['sha256'][:16]}..."
    )


def _measures(of: dict[str, Any]) -> str:
    said = [f"PSV {of['PSV']:.3g}", f"{of['unique pairs']:,} unique pairs, {of['unique share']:.3g} of the transitions"]
    if "TQ" in of:
        known = of["TQ reference"]
        ends = f"0: {known['random']:,.1f}, 1: {known['expert']:,.1f}, {known['source']}"
        said = [f"TQ {of['TQ']:.3g} ({ends})", *said]
    if "SACo" in of:
        known = of["SACo"]
        said += [f"SACo {known['value']:.3g} of {known['reference']}, sha256 {known['sha256'][:16]}..."]
    return ", ".join(said)


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
        left = {key: part for key, part in value.items() if part not in EMPTY and (part or key not in UNSET)}
        return ", ".join(f"{key} {_short(part)}" for key, part in left.items())
    if isinstance(value, list):  # those in lists are shapes, of a policy's layers
        return "; ".join("x".join(map(_short, part)) if isinstance(part, list) else _short(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
