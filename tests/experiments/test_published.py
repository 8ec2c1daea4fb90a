"""Figures that others published, as `experiments/published/*.csv` hold them."""

import csv
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "experiments" / "published" / "offline.csv"
SIGMAS = ("sigma 1%", "sigma 5%", "sigma 10%", "sigma 50%")


@pytest.fixture(scope="module")
def rows():
    with FILE.open() as file:
        return list(csv.DictReader(file))


def test_each_row_says_where_it_is_from_and_no_cell_is_there_twice(rows):
    assert all(row["source"] for row in rows)
    cells = [(row["source"], row["method"], row["weights"], row["dataset"]) for row in rows]
    assert len(set(cells)) == len(cells)


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
