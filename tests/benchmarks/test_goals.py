"""What the benchmark of goal-conditioned algorithms counts."""

import numpy as np

from algos import gcbc
from benchmarks import goals
from benchmarks.updates import rows_of
from core import batches, dataset


def test_the_work_of_cloning_is_its_products():
    """Three products for each layer but the first, which has no slope to its input; a little for the rest."""
    norm = dataset.identity_norm(29, 8)
    algorithm = gcbc.make(gcbc.Config(), goals.SPEC)
    counted = goals.work_of(algorithm, batches.data(rows_of(2_000, goals.SPEC), norm), norm)
    first, others = 58 * 512, 2 * 512 * 512 + 512 * 8
    products = 2 * 1024 * (2 * first + 3 * others)
    assert products < counted < 1.1 * products


def test_the_official_figures_name_every_algorithm():
    from experiments.hindsight import ALGOS

    assert set(goals.OFFICIAL) == set(ALGOS)
    assert np.all(np.array(list(goals.OFFICIAL.values())) > 0)
