"""Optimiser helpers: schedules by formula, the clip's bound, delayed calls that stay branches under vmap."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core import optim
from core.config import ConfigError


def test_polyak():
    target, online = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, -2.0])}
    np.testing.assert_allclose(optim.polyak(target, online, 0.25)["a"], [1.5, 1.0])
    assert (optim.polyak(target, online, 1.0)["a"] == online["a"]).all()
    assert (optim.polyak(target, online, 0.0)["a"] == target["a"]).all()


def test_step_differentiates_the_first_argument_only():
    def loss(params, other):
        return (params * other).sum(), {"loss": (params * other).sum()}

    net = optim.start(optax.sgd(1.0), jnp.array([1.0, 2.0]))
    net, metrics = optim.step(optax.sgd(1.0), loss, net, jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(net.params, [-2.0, -2.0])
    assert metrics["loss"] == 11


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_gradient_in_parts_is_that_of_all(size):
    def loss(params, rows, key):
        x, nothing = rows
        value = jnp.square(x @ params["w"]).mean() + 0 * nothing.sum()
        return value, {"loss": value, "mean": x.mean()}

    params, x = {"w": jnp.array([1.0, -2.0])}, jnp.arange(12.0).reshape(6, 2)
    rows, key = (x, jnp.zeros((6, 0))), jax.random.key(0)
    grads, metrics = jax.jit(lambda params: optim.mean_grad(loss, params, rows, key, size))(params)
    wanted, same = jax.grad(loss, has_aux=True)(params, rows, key)
    np.testing.assert_allclose(grads["w"], wanted["w"], rtol=1e-6)
    np.testing.assert_allclose(list(metrics.values()), list(same.values()), rtol=1e-6)


def test_parts_of_a_gradient_draw_apart():
    def loss(params, rows, key):
        return (params * jax.random.normal(key) * rows).mean(), {}

    grads, _ = optim.mean_grad(loss, jnp.ones(()), jnp.ones(4), jax.random.key(0), 2)
    draws = jax.vmap(jax.random.normal)(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(grads, draws.mean(), rtol=1e-6)


def test_parts_that_do_not_fill_are_refused():
    with pytest.raises(ConfigError, match="6 rows do not make parts of 4"):
        optim.mean_grad(lambda params, rows, key: (params.sum(), {}), jnp.ones(2), jnp.ones(6), jax.random.key(0), 4)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_by_hand(decay):
    rng, lr, b1, b2, eps = np.random.default_rng(0), 0.01, 0.8, 0.99, 1e-5
    p = rng.normal(size=4)
    tx = optim.adam(lr, b1, b2, eps, weight_decay=decay)
    net, m, v = optim.start(tx, jnp.asarray(p, jnp.float32)), 0, 0
    for t in range(1, 6):
        g = rng.normal(size=4)
        net = optim.apply(tx, net, jnp.asarray(g, jnp.float32))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - lr * decay * p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        np.testing.assert_allclose(net.params, p, rtol=1e-4, atol=1e-6)


def clipped(grads, bound):
    """What Adam's first moment got, from its state after one step."""
    tx = optim.adam(1e-3, max_norm=bound)
    net = optim.apply(tx, optim.start(tx, jax.tree.map(jnp.zeros_like, grads)), grads)
    mu = next(s.mu for s in jax.tree.leaves(net.opt, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    return jax.tree.map(lambda m: m / 0.1, mu)


def test_the_clip_bounds_the_global_norm():
    grads = {"a": jnp.array([30.0, -40.0]), "b": jnp.array([0.01, 120.0])}
    after = clipped(grads, 2.0)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(after)))
    assert norm == pytest.approx(2.0, rel=1e-5)
    jax.tree.map(lambda a, g: np.testing.assert_allclose(a, g * 2 / 130, rtol=1e-4), after, grads)
    jax.tree.map(lambda a, g: np.testing.assert_allclose(a, g, rtol=1e-5), clipped(grads, 200.0), grads)


def test_cosine():
    lr = optim.cosine(0.3, 1000)
    np.testing.assert_allclose([lr(0), lr(500), lr(1000), lr(2000)], [0.3, 0.15, 0, 0], atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 10])
def test_warmup_cosine(warmup):
    low, high, cycle = 1e-5, 1e-3, 50
    lr = optim.warmup_cosine(low, high, warmup, cycle)
    for step in range(2 * cycle + 3):
        p = step % cycle
        fall = (1 + np.cos(np.pi * (p - warmup) / (cycle - warmup))) / 2
        wanted = low + (high - low) * (p / warmup if p < warmup else fall)
        assert float(jax.jit(lr)(jnp.int32(step))) == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ConfigError, match="warmup < cycle"):
        optim.warmup_cosine(low, high, 50, 50)


def test_a_schedule_counts_optimiser_steps():
    tx = optim.adam(lambda step: jnp.where(step < 2, 0.0, 1.0))
    net = optim.start(tx, jnp.zeros(1))
    moved = []
    for _ in range(4):
        net = optim.apply(tx, net, jnp.ones(1))
        moved.append(float(net.params[0]))
    np.testing.assert_allclose(moved, [0, 0, -1, -2], rtol=1e-5)


def test_every_calls_on_multiples():
    calls = []
    state = jnp.int32(0)
    for step in range(7):
        state, metrics = optim.every(3, jnp.int32(step), lambda s: (s + 1, {"x": jnp.float32(s)}), state)
        calls.append(not np.isnan(metrics["x"]))
    assert calls == [False, False, True, False, False, True, False]
    assert state == 2
    for step in range(3):
        state, metrics = optim.every(1, jnp.int32(step), lambda s: (s + 1, {"x": jnp.float32(s)}), state)
    assert state == 5
    assert metrics["x"] == 4
    with pytest.raises(ConfigError, match="at least 1"):
        optim.every(0, jnp.int32(0), lambda s: (s, {}), state)


@pytest.mark.parametrize(("period", "first", "wanted"), [(2, 1, [0, 2, 4, 6]), (3, 2, [1, 4]), (3, 3, [2, 5])])
def test_every_begins_with_the_call_that_is_said(period, first, wanted):
    calls, state = [], jnp.int32(0)
    for step in range(7):
        state, metrics = optim.every(period, jnp.int32(step), lambda s: (s + 1, {"x": jnp.float32(s)}), state, first)
        calls.append(not np.isnan(metrics["x"]))
    assert np.flatnonzero(calls).tolist() == wanted
    assert state == len(wanted)


def counting_run(x, start, steps=5):
    """A scan whose body has a delayed product; x f32[n, n], start i32[]."""

    def body(carry, _):
        x, step = carry
        x, metrics = optim.every(2, step, lambda x: (jnp.tanh(x @ x), {"sum": x.sum()}), x)
        return (x, step + 1), metrics

    return jax.lax.scan(body, (x, start), None, steps)


def test_a_delayed_call_stays_a_branch_under_vmap():
    x = jax.random.normal(jax.random.key(0), (3, 4, 4))
    program = jax.jit(jax.vmap(counting_run))
    starts = jnp.full(3, 1, jnp.int32)
    assert len(re.findall(r"\bcond\[", str(jax.make_jaxpr(program)(x, starts)))) == 1
    assert " conditional(" in program.lower(x, starts).compile().as_text()

    (many, _), metrics = program(x, starts)
    for i in range(3):
        (alone, _), own = jax.jit(counting_run)(x[i], starts[i])
        np.testing.assert_allclose(many[i], alone, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(metrics["sum"][i], own["sum"], rtol=1e-6, atol=1e-6)
        assert np.isnan(own["sum"]).tolist() == [False, True, False, True, False]


def test_without_lockstep_the_branch_would_be_lost():
    """What `lockstep` is for: a batched predicate makes vmap run both branches."""

    def body(x, step):
        return jax.lax.cond(step % 2 == 0, lambda x: x @ x, lambda x: x, x)

    text = str(jax.make_jaxpr(jax.vmap(body))(jnp.zeros((3, 4, 4)), jnp.zeros(3, jnp.int32)))
    assert "cond[" not in text


def test_lockstep_under_nested_vmaps_takes_the_leader():
    steps = jnp.array([[3, 3, 1], [3, 0, 3]])
    assert optim.lockstep(jnp.int32(7)) == 7
    out = jax.jit(jax.vmap(jax.vmap(optim.lockstep)))(steps)
    assert (out == 3).all()
    out = jax.vmap(lambda unmapped, mapped: optim.lockstep(unmapped) + mapped, (None, 0))(jnp.int32(2), jnp.arange(3))
    assert out.tolist() == [2, 3, 4]


def test_a_frozen_seed_does_not_hold_the_others_back():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4))
    (together, _), _ = jax.vmap(counting_run)(x, jnp.array([4, 1], jnp.int32))
    (alone, _), _ = counting_run(x[0], jnp.int32(4))
    np.testing.assert_allclose(together[0], alone, rtol=1e-6, atol=1e-7)
