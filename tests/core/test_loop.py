"""The offline loop: K and vmap change nothing, a non-finite seed is frozen, devices give the same numbers."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import td3_bc
from core import batches, loop
from core import dataset as ds
from core.config import ConfigError
from core.types import EnvSpec, Start

SPEC = EnvSpec("toy/match", (2,), 2)
CONFIG = td3_bc.Config(hidden=(16, 16), batch_size=32)


@pytest.fixture(scope="module")
def setting(arrays):
    data = ds.from_lengths(*(arrays[k] for k in ("state", "action", "reward", "terminated", "length")))
    norm = ds.norm(data, "standard")
    return td3_bc.make(CONFIG, SPEC), Start(norm), batches.data(data, norm)


def offline(algorithm, run, data, updates, epoch, mesh=None):
    return loop.train(loop.compiled(algorithm, run, data, epoch, mesh), run, 0, updates)


def trained(setting, seeds, updates, epoch):
    algorithm, start, data = setting
    for report in offline(algorithm, loop.begin(algorithm, start, seeds), data, updates, epoch):
        last = jax.tree.map(np.asarray, report.run._replace(key=jax.random.key_data(report.run.key)))
    return last, report


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.fixture(scope="module")
def pair(setting):
    return trained(setting, (0, 5), 24, 12)


def test_epochs_of_any_length_give_the_same_numbers(setting, pair):
    one, _ = trained(setting, (0, 5), 24, 1)
    close(one, pair[0], rtol=0, atol=0)


def test_a_vmapped_seed_equals_its_solo_run(setting, pair):
    solo, _ = trained(setting, (5,), 24, 12)
    close(jax.tree.map(lambda x: x[0], solo), jax.tree.map(lambda x: x[1], pair[0]), rtol=1e-4, atol=2e-6)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(setting, pair):
    again, _ = trained(setting, (0, 5), 24, 12)
    close(again, pair[0], rtol=0, atol=0)
    kernels = jax.tree.leaves(pair[0].algo.actor.params)
    assert all(np.abs(k[0] - k[1]).max() > 1e-3 for k in kernels)


def test_counts(pair):
    run, report = pair
    assert run.step.tolist() == [24, 24]
    assert report.step == 24
    assert run.algo.step.tolist() == [24, 24]
    assert report.metrics["critic/loss"].shape == (2,)
    assert np.isfinite(report.metrics["actor/loss"]).all()  # reported on every other update only


def test_updates_must_be_whole_epochs(setting):
    algorithm, start, data = setting
    with pytest.raises(ConfigError, match="25 steps are not a whole number of epochs of 12"):
        next(offline(algorithm, loop.begin(algorithm, start, (0,)), data, 25, 12))


def poison(run, seed):
    params = jax.tree.map(lambda x: x.at[seed].set(jnp.nan), run.algo.actor.params)
    return run._replace(algo=run.algo._replace(actor=run.algo.actor._replace(params=params)))


def test_a_non_finite_seed_is_frozen_and_the_others_go_on(setting, pair):
    algorithm, start, data = setting
    run = poison(loop.begin(algorithm, start, (0, 5)), 0)
    for report in offline(algorithm, run, data, 24, 12):
        failed, steps = np.asarray(report.run.failed), np.asarray(report.run.step)
        healthy = jax.tree.map(lambda x: np.asarray(x[1]), report.run.algo)
    assert failed.tolist() == [True, False]
    assert steps.tolist() == [0, 24]
    close(healthy, jax.tree.map(lambda x: x[1], pair[0].algo), rtol=0, atol=0)


def test_all_seeds_failed_is_an_error(setting):
    algorithm, start, data = setting
    epochs = offline(algorithm, poison(loop.begin(algorithm, start, (0,)), 0), data, 24, 12)
    assert np.asarray(next(epochs).run.failed).all()
    with pytest.raises(loop.Diverged, match="every seed turned non-finite by step 12"):
        next(epochs)


DEVICES = """
import jax, numpy as np
from algos import td3_bc
from core import batches, dataset as ds, loop, sharding
from core.types import Start
from tests.conftest import match_arrays
from tests.core.test_loop import CONFIG, SPEC, close, offline
assert jax.device_count() == 8
arrays = match_arrays()
data = ds.from_lengths(*(arrays[k] for k in ("state", "action", "reward", "terminated", "length")))
norm = ds.norm(data, "standard")
algorithm = td3_bc.make(CONFIG, SPEC)
for seeds in (tuple(range(8)), (3,)):
    start = lambda: (loop.begin(algorithm, Start(norm), seeds), batches.data(data, norm))
    mesh = sharding.mesh(len(seeds))
    assert mesh.shape["seed"] == len(seeds) and mesh.shape["data"] == 8 // len(seeds)
    for report in offline(algorithm, *sharding.place(*start(), mesh), 8, 4, mesh):
        wide = jax.block_until_ready(report.run)
    assert len(jax.tree.leaves(wide.algo)[0].sharding.device_set) == 8
    *_, last = offline(algorithm, *start(), 8, 4)
    alone = last.run
    close(jax.device_get(wide.algo), jax.device_get(alone.algo), rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_eight_devices_train_the_same_runs():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
