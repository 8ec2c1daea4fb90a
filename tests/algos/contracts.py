"""What holds of every algorithm on a dataset, for tests of one to call with its own record."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from core import batches, dataset, loop
from core.algorithm import Algorithm
from core.types import Data, Dataset, Norm, Start, Transition
from tests.algos.problems import random_batch, random_dataset, same


def close(a, b, rtol=1e-5, atol=1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def learned_from(algorithm: Algorithm, episodes: Dataset, norm: Norm) -> Data:
    extra = algorithm.prepare(episodes, Start(norm)) if algorithm.prepare else ()
    return batches.data(episodes, norm, extra=extra)


def compiled_once_pure_and_alone_as_among_seeds(algorithm: Algorithm) -> None:
    """One program for all epochs; the same again, to the bit; fused updates as shorter epochs; seeds as seeds alone."""
    episodes = random_dataset()
    norm = dataset.norm(episodes, "standard")
    data, traces = learned_from(algorithm, episodes, norm), []
    six = jax.jit(lambda run, data: traces.append(0) or loop.epoch(algorithm, 6)(run, data))
    run = loop.begin(algorithm, Start(norm), (0, 1))
    once, metrics = six(run, data)
    assert same(once.algo, six(run, data)[0].algo)
    assert not same(once.algo, six(once, data)[0].algo)
    assert len(traces) == 1
    two, parts = jax.jit(loop.epoch(algorithm, 2)), run
    for _ in range(3):
        parts, _ = two(parts, data)
    assert same(once.algo, parts.algo)
    for i in range(2):
        alone, own = six(jax.tree.map(lambda x, i=i: x[i : i + 1], run), data)
        close(jax.tree.map(lambda x, i=i: x[i], once.algo), jax.tree.map(lambda x: x[0], alone.algo))
        for name in own:
            np.testing.assert_allclose(metrics[name][i], own[name][0], rtol=1e-4, atol=1e-5)


def no_key_is_used_twice(algorithm: Algorithm) -> None:
    episodes = random_dataset()
    norm = dataset.norm(episodes)
    data, start = learned_from(algorithm, episodes, norm), Start(norm)
    state = algorithm.init(jax.random.key(9), start)
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        batch = jax.jit(algorithm.sample)(data, jax.random.fold_in(key, 1))
        jax.jit(algorithm.update)(state, batch, jax.random.fold_in(key, 2))
        seen = batch.obs if isinstance(batch, Transition) else batch[0].obs
        jax.jit(algorithm.act)(state, seen, (), jax.random.fold_in(key, 3))
        jax.jit(algorithm.init)(jax.random.fold_in(key, 4), start)
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda key: (jax.random.normal(key), jax.random.normal(key)))(key)


def normalised_in_training_and_acting(algorithm: Algorithm, extras: dict) -> None:
    """Shifted and scaled states with the matching norm give what plain states give without one."""
    shift, scale = np.array([5.0, -2.0, 0.5], np.float32), np.array([2.0, 0.1, 3.0], np.float32)
    none = dataset.identity_norm(3, 2)
    plain = random_batch()._replace(extras=extras)
    lift = lambda obs: obs._replace(state=obs.state * scale + shift)  # noqa: E731
    moved = plain._replace(obs=lift(plain.obs), next_obs=lift(plain.next_obs))
    key, states = jax.random.key(3), []
    update, init = jax.jit(algorithm.update), jax.jit(algorithm.init)
    for norm, batch in ((none, plain), (none._replace(state_shift=shift, state_scale=scale), moved)):
        state = init(key, Start(norm))
        for _ in range(2):
            state, _ = update(state, batch, key)
        states.append(state)
    close(states[0].actor.params, states[1].actor.params, atol=1e-5)
    acted = [algorithm.act_eval(s, b.obs, (), key).action for s, b in zip(states, (plain, moved), strict=True)]
    np.testing.assert_allclose(*acted, atol=1e-5)
    assert np.std(acted[0]) > 0


def explores_within_bounds_and_is_judged_without_noise(algorithm: Algorithm) -> None:
    state = algorithm.init(jax.random.key(0), Start(dataset.identity_norm(3, 2)))
    obs = random_batch().obs
    judged = [algorithm.act_eval(state, obs, (), jax.random.key(i)).action for i in range(2)]
    explored = [algorithm.act(state, obs, (), jax.random.key(i)).action for i in range(2)]
    assert (judged[0] == judged[1]).all()
    assert (explored[0] != explored[1]).all()
    assert np.abs(explored).max() <= 1


REFUSED = pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal_shape": (2,)}, "single-task variant"),
        ({"num_actions": 4}, "discrete"),
        ({"obs_shape": (64, 64, 3)}, "images"),
        ({"chunk": 4}, "without chunks"),
    ],
)
