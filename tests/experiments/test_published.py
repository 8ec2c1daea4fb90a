"""Figures that others published, as `experiments/published/*.csv` hold them."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "published"
SIGMAS = ("sigma 1%", "sigma 5%", "sigma 10%", "sigma 50%")


def read(name):
    with (FOLDER / name).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def rows():
    return read("offline.csv")


@pytest.mark.parametrize(
    ("name", "cell"),
    [("offline.csv", ("source", "method", "weights", "dataset")), ("goals.csv", ("source", "method", "dataset"))],
)
def test_each_row_says_where_it_is_from_and_no_cell_is_there_twice(name, cell):
    found = read(name)
    assert all(row["source"] for row in found)
    assert len({tuple(row[part] for part in cell) for row in found}) == len(found)


def test_what_we_remember_of_mazes_has_the_means_of_otas_figure():
    """36 of its bars, each the mean over the kinds of data of a maze."""
    kinds, bars = defaultdict(list), {}
    for row in read("goals.csv"):
        if row["dataset"].startswith("group: "):
            bars[row["method"], row["dataset"].removeprefix("group: ")] = float(row["success"])
        elif "sums agree" in row["source"]:
            kinds[row["method"], row["dataset"].rpartition("-")[0]].append(float(row["success"]))
    assert len(kinds) == 36
    for which, of in kinds.items():
        assert np.mean(of) == pytest.approx(bars[which], abs=0.01)


@pytest.mark.parametrize("method", ["CQL", "IQL", "TD3+BC"])
@pytest.mark.parametrize("weights", ["uniform", "aw", "top:0.1"])
def test_groups_of_mixed_datasets_agree_with_one_another(rows, method, weights):
    chosen = {
        row["dataset"].removeprefix("group: "): float(row["score"])
        for row in rows
        if (row["method"], row["weights"]) == (method, weights) and row["dataset"].startswith("group: ")
    }
    whole = chosen["32 mixed"]
    assert np.mean([chosen[sigma] for sigma in SIGMAS]) == pytest.approx(whole, abs=0.1)
    assert (chosen["random-expert (16)"] + chosen["random-medium (16)"]) / 2 == pytest.approx(whole, abs=0.1)


def test_prdcs_sum_over_locomotion_is_the_papers(rows):
    robots = ("halfcheetah", "hopper", "walker2d")
    scores = [float(r["score"]) for r in rows if r["method"] == "PRDC" and r["dataset"].startswith(robots)]
    assert len(scores) == 12
    assert sum(scores) == pytest.approx(869.7, abs=0.35)
