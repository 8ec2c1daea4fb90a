"""Behaviour cloning: it finds the behaviour's mean (and spread), from states and from images."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algos
from algos import bc
from core import batches, dataset, loop
from core.config import ConfigError, UnknownName
from core.types import EnvSpec, Norm, Observation, Start
from tests.algos.problems import match_problem, same

ROOT = Path(__file__).parents[2]
SPEC = EnvSpec("match", (2,), 2)
CFG = bc.Config(hidden=(32, 32), batch_size=128, lr=1e-3)


def seen(state):
    n = len(state)
    return Observation(jnp.asarray(state), jnp.zeros((n, 0)), jnp.zeros(n), jnp.zeros(n, jnp.int32))


@pytest.fixture(scope="module")
def problem():
    episodes = match_problem()
    norm = dataset.norm(episodes, "standard")
    return batches.data(episodes, norm), Start(norm)


def train(cfg, problem, updates=1500):
    data, start = problem
    algorithm = bc.make(cfg, SPEC)
    run, metrics = jax.jit(loop.epoch(algorithm, updates))(loop.begin(algorithm, start, (0,)), data)
    return algorithm, run.algo, metrics


@pytest.mark.parametrize("loss", ["mse", "gaussian"])
def test_finds_the_behaviour(problem, loss):
    algorithm, states, metrics = train(replace(CFG, loss=loss), problem)
    state = jax.tree.map(lambda x: x[0], states)
    s = np.random.default_rng(1).uniform(-0.8, 0.8, (400, 2)).astype(np.float32)
    mean = algorithm.act_eval(state, seen(s), (), jax.random.key(0)).action
    np.testing.assert_allclose((mean - s / 2).mean(0), [0.3, -0.3], atol=0.06)
    explored = algorithm.act(state, seen(s), (), jax.random.key(1)).action
    wanted = 0.3 if loss == "gaussian" else CFG.exploration  # the behaviour's own spread, less what the bounds cut off
    assert np.std(explored - mean) == pytest.approx(wanted, rel=0.25)
    if loss == "gaussian":
        entropy = 2 * (np.log(0.3) + 0.5 + 0.5 * np.log(2 * np.pi))
        assert float(metrics["actor/loss"][0]) == pytest.approx(entropy, abs=0.35)


def test_pure_and_the_same_alone_or_among_seeds(problem):
    data, start = problem
    algorithm = bc.make(CFG, SPEC)
    epoch = jax.jit(loop.epoch(algorithm, 5))
    run = loop.begin(algorithm, start, (0, 1))
    many, again = epoch(run, data)[0].algo, epoch(run, data)[0].algo
    alone = epoch(jax.tree.map(lambda x: x[1:], run), data)[0].algo
    assert same(many, again)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y[0], rtol=1e-5, atol=1e-6), many, alone)


def test_weight_decay_and_clip_are_in_force(problem):
    after = []
    for change in ({}, {"weight_decay": 1.0}, {"max_norm": 1e-9}):
        algorithm = bc.make(replace(CFG, **change), SPEC)
        state = jax.jit(algorithm.init)(jax.random.key(0), problem[1])
        batch = algorithm.sample(problem[0], jax.random.key(1))
        after.append(jax.jit(algorithm.update)(state, batch, jax.random.key(2))[0].actor.params)
    assert not same(after[0], after[1])
    assert not same(after[0], after[2])


def test_action_normalisation_is_undone_by_acting():
    """Small actions, minmax-normalised for the network, come back in the environment's units."""
    episodes = match_problem()
    episodes = episodes._replace(action=episodes.action * np.float32(0.01))
    norm = dataset.norm(episodes, "standard", "minmax")
    algorithm, states, _ = train(CFG, (batches.data(episodes, norm), Start(norm)))
    state = jax.tree.map(lambda x: x[0], states)
    s = np.random.default_rng(1).uniform(-0.8, 0.8, (400, 2)).astype(np.float32)
    action = algorithm.act_eval(state, seen(s), (), jax.random.key(0)).action
    np.testing.assert_allclose((100 * action - s / 2).mean(0), [0.3, -0.3], atol=0.06)


def test_images():
    """Two images, two actions: the encoder tells them apart."""
    rng = np.random.default_rng(0)
    pair, target = rng.integers(0, 256, (2, 8, 8, 3), np.uint8), np.array([[0.5], [-0.5]], np.float32)
    which = rng.integers(0, 2, 64)
    flat = np.zeros(64, np.float32)
    episodes = dataset.from_lengths(pair[which], target[which], flat, flat > 0, np.array([63]))
    spec = EnvSpec("images", (8, 8, 3), 1)
    algorithm = bc.make(
        bc.Config(hidden=(16,), batch_size=16, encoder="impala_debug", lr=1e-3, state_norm="none"), spec
    )
    start = Start(Norm(*(np.full(1, v, np.float32) for v in (0, 1, 0, 1))))
    data = batches.data(episodes, start.norm)
    run, _ = jax.jit(loop.epoch(algorithm, 150))(loop.begin(algorithm, start, (0,)), data)
    state = jax.tree.map(lambda x: x[0], run.algo)
    action = jax.jit(algorithm.act_eval)(state, seen(pair), (), jax.random.key(0)).action
    np.testing.assert_allclose(action, target, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"goal_shape": (2,)}, "single-task"), ({"num_actions": 4}, "discrete"), ({"chunk": 4}, "without chunks")],
)
def test_tasks_that_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        bc.make(CFG, SPEC._replace(**change))


def test_unknown_options():
    with pytest.raises(UnknownName, match="gaussian"):
        bc.make(replace(CFG, loss="gausian"), SPEC)


def test_listing_names_imports_no_jax():
    code = "import algos, sys; print(algos.names()); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_registry():
    assert {"bc", "td3_bc"} <= set(algos.names())
    assert algos.load("bc") is bc
    for name in algos.names():
        module = algos.load(name)
        assert issubclass(module.Config, algos.load("bc").algorithm.Config)
        assert callable(module.make)
    with pytest.raises(UnknownName, match="td3_bc"):
        algos.load("td3bc")
