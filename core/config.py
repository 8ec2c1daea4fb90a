"""Configuration helpers: nearest names, JSON of frozen dataclasses, hashes.  Imports no jax."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """Bad input; the message says what to do.  The command line prints it and exits with 2."""


class UnknownName(ConfigError):
    """A name that is not in its list; the message gives the nearest ones."""

    def __init__(self, kind: str, name: str, valid: Iterable[str]):
        valid = list(valid)
        near = difflib.get_close_matches(name, valid, n=4, cutoff=0.5) or valid[:8]
        super().__init__(f"unknown {kind} '{name}'; nearest: {', '.join(near)}")


def require_finite(config: Any, name: str = "") -> None:
    """Raises: ConfigError for a float option that is NaN or infinite, wherever in the dataclass it lies."""
    for field in dataclasses.fields(config):
        value, full = getattr(config, field.name), f"{name}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(value):
            require_finite(value, f"{full}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{full} {value} is not a number that can be used")


def require_choices(config: Any) -> None:
    """Raises: UnknownName for an option, wherever in the dataclass it lies, that is none of its type's Literals."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            require_choices(value)
        elif typing.get_origin(kind) is typing.Literal:
            choose(f"{name}", value, dict.fromkeys(typing.get_args(kind)))


def require_least(config: Any, **least: float) -> None:
    """Raises: ConfigError for the first option that is below the least value that it may have."""
    for name, low in least.items():
        if (value := getattr(config, name)) < low:
            raise ConfigError(f"{name} {value} must be at least {low}")


def choose(kind: str, name: str, table: dict[str, Any]) -> Any:
    """`table[name]`, or UnknownName."""
    if name not in table:
        raise UnknownName(kind, name, table)
    return table[name]


def changed(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their class's defaults, as JSON values."""
    now, default = to_dict(config), to_dict(type(config)())
    return {key: value for key, value in now.items() if value != default[key]}


def to_dict(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Rebuild a frozen dataclass from `to_dict`; lists become tuples, nested dataclasses are followed.

    Raises: UnknownName for a key that the class does not have.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kwargs = {}
    for key, value in values.items():
        if key not in fields:
            raise UnknownName(f"option of {cls.__name__}", key, fields)
        default = fields[key].default
        if default is dataclasses.MISSING and fields[key].default_factory is not dataclasses.MISSING:
            default = fields[key].default_factory()
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            value = from_dict(type(default), value)
        kwargs[key] = _tuples(value)
    return cls(**kwargs)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def fingerprint(values: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
