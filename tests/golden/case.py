"""One golden file: remembers which arrays were read, and which comparison came out how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

HYPER = "hyperparameters_json"


class Uncheckable(Exception):
    """The file does not have the layout that its folder's README describes."""


class Row(NamedTuple):
    """A comparison at the element where error / bound is worst."""

    name: str
    error: float
    bound: float
    ok: bool
    note: str = ""


def compare(name: str, ours, reference, rtol: float, atol: float, note: str = "") -> Row:
    """|ours - reference| <= atol + rtol |reference| in every element; NaN never is.

    Raises: Uncheckable when the shapes differ by more than axes of length 1.
    """
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.squeeze().shape != reference.squeeze().shape or not reference.size:
        raise Uncheckable(f"{name}: shape {reference.shape} in the file, {ours.shape} here")
    error = np.abs(ours.squeeze() - reference.squeeze()).ravel()
    bound = atol + rtol * np.abs(reference.squeeze()).ravel()
    finite = np.isfinite(error) & np.isfinite(bound)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 where an exact comparison is met
        ratio = np.divide(error, bound, where=finite, out=np.full_like(error, np.inf))
    worst = np.argmax(np.nan_to_num(ratio, nan=0, posinf=np.inf))
    return Row(name, float(error[worst]), float(bound[worst]), bool(finite.all() and (error <= bound).all()), note)


class Case:
    """Arrays of one `.npz` by their dotted or slashed names, or the lists of numbers in one `.json`."""

    def __init__(self, path: str | Path):
        """Raises: Uncheckable when the file cannot be read whole."""
        self.path = Path(path)
        try:
            if self.path.suffix == ".json":
                self._arrays = {k: np.asarray(v, np.float64) for k, v in json.loads(self.path.read_text()).items()}
            else:
                with np.load(self.path, allow_pickle=False) as file:
                    self._arrays = {key: file[key] for key in file.files}
        except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
            raise Uncheckable(f"cannot be read: {error}") from error
        self._hyper = json.loads(str(self._arrays.pop(HYPER))) if HYPER in self._arrays else {}
        self._read: set[str] = set()
        self.rows: list[Row] = []

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key in self._arrays if key.startswith(prefix)]

    def has(self, key: str) -> bool:
        """Whether there is such an array, or such a hyper-parameter in the JSON string."""
        return key in self._arrays or key in self._hyper

    def ignore(self, *keys: str) -> None:
        """Count arrays and hyper-parameters as read, where they are there: they say nothing that others do not."""
        self._read.update(key for key in keys if key in self._arrays)
        self._read.update(f"{HYPER}/{key}" for key in keys if key in self._hyper)

    def groups(self) -> list[str]:
        """First parts of the slashed names, in order."""
        return list(dict.fromkeys(key.split("/")[0] for key in self._arrays))

    def read(self, key: str) -> np.ndarray:
        """Raises: Uncheckable when it is not there."""
        if key not in self._arrays:
            raise Uncheckable(f"array '{key}' is missing")
        self._read.add(key)
        return self._arrays[key]

    def hyper(self, name: str):
        """A hyper-parameter, from `hp.NAME` or from the JSON string."""
        if name in self._hyper:
            self._read.add(f"{HYPER}/{name}")
            return self._hyper[name]
        return self.read(f"hp.{name}").item()

    def agree(self, name: str, value) -> None:
        """Raises: Uncheckable when a hyper-parameter says otherwise than `value`, which the arrays say."""
        said = self.hyper(name)
        if said != value:
            raise Uncheckable(f"hyper-parameter '{name}' is {said}, but the arrays say {value}")

    def check(self, name: str, ours, key: str, rtol: float, atol: float, note: str = "") -> None:
        """Compare with an array of the file and keep the row."""
        self.rows.append(compare(name, ours, self.read(key), rtol, atol, note))

    def left_over(self) -> list[str]:
        """Arrays and hyper-parameters that nothing has read."""
        return sorted({*self._arrays, *(f"{HYPER}/{name}" for name in self._hyper)} - self._read)
