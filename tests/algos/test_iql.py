"""IQL: its losses against NumPy in both orders, weights of rows, the contracts, toys whose values are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import iql
from core import batches, dataset, loop
from core.config import ConfigError
from core.networks import member
from core.types import EnvSpec, Observation, Start
from tests.algos.problems import NORM, SPEC, random_batch, random_dataset, same

CFG = iql.Config(batch_size=16, hidden=(8, 8))


def begin(cfg=CFG, norm=NORM, seed=0):
    """(algorithm, state), the state's networks all different from their targets and from 0."""
    algorithm = iql.make(cfg, SPEC)
    state = jax.jit(algorithm.init)(jax.random.key(seed), Start(norm))
    return algorithm, state._replace(critic_target=jax.tree.map(lambda x: x + 0.1, state.critic_target))


def mlp(params, x):
    """Dense, relu, Dense, relu, Dense in float64."""
    layers = [params["params"][f"Dense_{i}"] for i in range(3)]
    for i, layer in enumerate(layers):
        x = np.asarray(x, np.float64) @ np.float64(layer["kernel"]) + np.float64(layer["bias"])
        x = np.maximum(x, 0) if i < 2 else x
    return x


def value(params, obs):
    return mlp(params, obs)[:, 0]


def twins(params, obs, action):
    both = np.concatenate([obs, action], -1)
    return np.stack([mlp(member(params, e), both)[:, 0] for e in (0, 1)])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("policy", "order"), [("gaussian", "original"), ("deterministic", "corl")])
def test_losses_equal_their_equations(policy, order, weighted):
    cfg = replace(CFG, policy=policy, order=order, beta=2.0, discount=0.9, expectile=0.8)
    _, state = begin(cfg)
    if policy == "gaussian":
        given = {**state.actor.params, "log_std": jnp.array([-0.5, -9.0])}  # the second below the bound
        state = state._replace(actor=state.actor._replace(params=given))
    batch = iql.to_batch(state.norm, random_batch(), cfg)
    rows = np.random.default_rng(3).uniform(0, 2, 16).astype(np.float32) if weighted else np.ones(16)
    batch = batch._replace(weight=jnp.asarray(rows) if weighted else None)
    new, metrics = jax.jit(lambda s, b: iql.update_with(s, b, None, iql.networks(cfg, SPEC), cfg))(state, batch)

    u = twins(state.critic_target, batch.obs, batch.action).min(0) - value(state.value.params, batch.obs)
    wanted = (rows * np.where(u < 0, 0.2, 0.8) * u**2).mean()
    np.testing.assert_allclose(metrics["value/loss"], wanted, rtol=1e-4)

    read = (new if order == "original" else state).value.params
    other = (state if order == "original" else new).value.params
    y = batch.reward + 0.9 * (1 - np.asarray(batch.terminated)) * value(read, batch.next_obs)
    assert not np.allclose(y, batch.reward + 0.9 * (1 - np.asarray(batch.terminated)) * value(other, batch.next_obs))
    squares = (twins(state.critic.params, batch.obs, batch.action) - np.asarray(y)) ** 2
    factor = 1 if order == "original" else 0.5
    np.testing.assert_allclose(metrics["critic/loss"], factor * (rows * squares).mean(1).sum(), rtol=1e-4)

    gain = twins(state.critic_target, batch.obs, batch.action).min(0) - value(read, batch.obs)
    error = np.asarray(batch.action) - np.tanh(mlp(state.actor.params["mean"], batch.obs))
    std = np.exp([-0.5, -5.0])
    cost = (error**2).sum(1)
    if policy == "gaussian":
        cost = (0.5 * (error / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)).sum(1)
    weight = np.minimum(np.exp(2 * gain), 100)
    np.testing.assert_allclose(metrics["actor/loss"], (rows * weight * cost).mean(), rtol=2e-4)

    moved = jax.tree.map(lambda t, q: 0.995 * t + 0.005 * q, state.critic_target, new.critic.params)
    jax.tree.map(lambda x, w: np.testing.assert_allclose(x, w, rtol=1e-5, atol=1e-7), new.critic_target, moved)


def test_a_row_of_weight_two_is_two_rows():
    """Weights 2, ..., 0, ... of all rows give what the first half gives twice, in every network."""
    algorithm, state = begin()
    raw = random_batch()
    twice = jax.tree.map(lambda x: jnp.concatenate([x[:8], x[:8]]), raw._replace(extras=()))
    weighted = raw._replace(extras={"weight": jnp.repeat(jnp.array([2.0, 0.0]), 8)})
    update = jax.jit(algorithm.update)
    (a, _), (b, _) = (update(state, t, jax.random.key(0)) for t in (twice._replace(extras={}), weighted))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)
    ones, _ = update(state, raw._replace(extras={"weight": jnp.ones(16)}), jax.random.key(0))
    assert not np.allclose(
        a.value.params["params"]["Dense_0"]["kernel"], ones.value.params["params"]["Dense_0"]["kernel"]
    )


def test_weights_saturate_and_extreme_actions_are_finite():
    """exp(beta u) stops at max_weight; an action of exactly +-1 has a log-density."""
    cfg = replace(CFG, beta=1e4, max_weight=7.0)
    algorithm, state = begin(cfg)
    raw = random_batch()
    new, metrics = jax.jit(algorithm.update)(state, raw._replace(action=jnp.sign(raw.action)), jax.random.key(0))
    assert 0 < metrics["actor/weight"] <= 7
    nets = iql.networks(cfg, SPEC)
    batch = iql.to_batch(state.norm, raw, cfg)
    _, limits = iql.actor_loss(state.actor.params, jnp.full(16, 5.0), batch, None, nets, cfg)
    assert limits["actor/weight"] == pytest.approx(7)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


def test_batches_as_the_networks_read_them():
    norm = NORM._replace(state_shift=np.full(3, 2, np.float32), state_scale=np.full(3, 4, np.float32))
    raw = random_batch()._replace(action=jnp.tile(jnp.array([1.0, -0.5]), (16, 1)))
    batch = iql.to_batch(norm, raw, replace(CFG, action_limit=0.9))
    np.testing.assert_allclose(batch.action, np.tile([0.9, -0.5], (16, 1)))
    np.testing.assert_allclose(batch.next_obs, (raw.next_obs.state - 2) / 4, rtol=1e-6)
    assert batch.weight is None
    assert float(iql.to_batch(norm, raw, CFG).action.max()) == np.float32(1 - 1e-5)


def test_initial_weights():
    """Orthogonal times sqrt 2 in every layer, biases and log std 0, targets as the critics."""
    state = jax.jit(iql.make(CFG, SPEC).init)(jax.random.key(0), Start(NORM))
    assert same(state.critic.params, state.critic_target)
    for params in (state.actor.params["mean"], state.value.params, member(state.critic.params, 1)):
        for layer in params["params"].values():
            kernel = np.asarray(layer["kernel"])
            gram = kernel.T @ kernel if kernel.shape[0] >= kernel.shape[1] else kernel @ kernel.T
            np.testing.assert_allclose(gram, 2 * np.eye(len(gram)), atol=1e-5)
            assert (layer["bias"] == 0).all()
    assert (state.actor.params["log_std"] == 0).all()
    cfg = replace(CFG, policy="deterministic")
    assert "log_std" not in iql.make(cfg, SPEC).init(jax.random.key(0), Start(NORM)).actor.params


def test_the_policys_rate_falls_along_a_cosine():
    """Over 4 updates: Adam's first step has size lr, and from the fifth on the policy rests; at 0 it goes on."""
    cfg = replace(CFG, actor_steps=4, actor_lr=1e-2)
    for change in ({}, {"actor_steps": 0}):
        algorithm, state = begin(replace(cfg, **change))
        update, moves = jax.jit(algorithm.update), []
        for step in range(6):
            before, (state, _) = state, update(state, random_batch(), jax.random.key(step))
            moves.append(np.abs(before.actor.params["log_std"] - state.actor.params["log_std"]).max())
        assert moves[0] == pytest.approx(1e-2, rel=1e-3)
        assert (moves[4] == moves[5] == 0) == (not change)
        assert moves[3] > 0


def test_dropout_is_of_the_policy_while_it_learns():
    (plain, state), (dropping, _) = begin(), begin(replace(CFG, dropout=0.5))
    results = [jax.jit(a.update)(state, random_batch(), jax.random.key(k)) for a, k in
               ((plain, 0), (dropping, 0), (dropping, 1), (dropping, 1))]  # fmt: skip
    states, losses = [new for new, _ in results], [float(metrics["actor/loss"]) for _, metrics in results]
    assert len(set(losses)) == 3
    assert losses[2] == losses[3]
    for name in ("critic", "critic_target", "value"):
        assert same(getattr(states[0], name), getattr(states[1], name))
    obs = random_batch().obs
    judged = [a.act_eval(state, obs, (), jax.random.key(0)).action for a in (plain, dropping)]
    assert (judged[0] == judged[1]).all()


def test_acting():
    """Judged by the mean; exploring with the policy's std around it; both inside the box."""
    for policy in ("gaussian", "deterministic"):
        algorithm, state = begin(replace(CFG, policy=policy))
        if policy == "gaussian":
            given = {**state.actor.params, "log_std": jnp.array([-3.0, -20.0])}
            state = state._replace(actor=state.actor._replace(params=given))
        state = jax.tree.map(lambda x: x, state)
        obs = Observation(*(jnp.zeros((4000, n)) for n in (3, 0)), jnp.zeros(4000), jnp.zeros(4000, jnp.int32))
        judged = algorithm.act_eval(state, obs, (), jax.random.key(0)).action
        np.testing.assert_allclose(judged, np.tanh(mlp(state.actor.params["mean"], obs.state)), atol=1e-6)
        explored = algorithm.act(state, obs, (), jax.random.key(0)).action
        if policy == "gaussian":  # the second std is at its lower bound
            np.testing.assert_allclose((explored - judged).std(0), np.exp([-3.0, -5.0]), rtol=0.05)
        else:
            assert (explored == judged).all()
    wide = {**begin()[1].actor.params, "log_std": jnp.full(2, 2.0)}
    algorithm, state = begin()
    wild = algorithm.act(state._replace(actor=state.actor._replace(params=wide)), obs, (), jax.random.key(0)).action
    assert np.abs(wild).max() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"expectile": 1.0}, {"dropout": 1.0}, {"discount": 1.1}, {"tau": 0.0}, {"beta": -1.0}, {"max_weight": 0.0},
        {"action_limit": 0.0}, {"actor_steps": -1}, {"log_std_min": 3.0}, {"order": "corl2"}, {"policy": "flow"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        iql.make(replace(CFG, **change), SPEC)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"goal_shape": (2,)}, "single-task"), ({"num_actions": 4}, "discrete"), ({"chunk": 4}, "without chunks")],
)
def test_tasks_that_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        iql.make(CFG, SPEC._replace(**change))


# --- contracts, with all that draws: dropout ---
def program(updates=6):
    algorithm = iql.make(replace(CFG, dropout=0.1), SPEC)
    episodes = random_dataset()
    norm = dataset.norm(episodes, "standard")
    return algorithm, batches.data(episodes, norm), Start(norm), jax.jit(loop.epoch(algorithm, updates))


def test_fused_updates_are_those_of_shorter_epochs_and_targets_move_in_each():
    """To the bit; but for a program of a single update, where XLA takes the loop away and rounds otherwise."""
    algorithm, data, start, six = program()
    fused, _ = six(loop.begin(algorithm, start, (0,)), data)
    two, one = (jax.jit(loop.epoch(algorithm, n)) for n in (2, 1))
    for epoch, count in ((two, 3), (one, 6)):
        run = loop.begin(algorithm, start, (0,))
        for _ in range(count):
            before, (run, _) = run, epoch(run, data)
            assert not same(before.algo.critic_target, run.algo.critic_target)
        if epoch is two:
            assert same(fused.algo, run.algo)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), fused.algo, run.algo)


def test_seeds_side_by_side_are_seeds_alone():
    algorithm, data, start, epoch = program()
    run = loop.begin(algorithm, start, (0, 1, 2))
    together, _ = epoch(run, data)
    assert same(together.algo, epoch(run, data)[0].algo)
    for i in range(3):
        alone, _ = epoch(jax.tree.map(lambda x, i=i: x[i : i + 1], run), data)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y[0], rtol=1e-5, atol=1e-6), together.algo, alone.algo
        )


def test_no_key_is_used_twice():
    algorithm, data, start, _ = program()
    state = algorithm.init(jax.random.key(9), start)
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        batch = jax.jit(algorithm.sample)(data, jax.random.fold_in(key, 1))
        jax.jit(algorithm.update)(state, batch, jax.random.fold_in(key, 2))
        jax.jit(algorithm.act)(state, batch.obs, (), jax.random.fold_in(key, 3))
        jax.jit(algorithm.init)(jax.random.fold_in(key, 4), start)


# --- learning ---
def train(cfg, spec, episodes, updates):
    """(networks, state) after training one seed."""
    algorithm, norm = iql.make(cfg, spec), dataset.norm(episodes)
    run, _ = jax.jit(loop.epoch(algorithm, updates))(
        loop.begin(algorithm, Start(norm), (0,)), batches.data(episodes, norm)
    )
    assert not run.failed.any()
    return iql.networks(cfg, spec), jax.tree.map(lambda x: x[0], run.algo)


def test_a_bandit_whose_expectile_and_policy_are_known():
    """One step of reward s + a, a uniform in [-1, 1].

    The expectile of the reward is s + (1 - k) / (1 + k), k = sqrt((1 - kappa) / kappa).  The Gaussian that is closest
    to the uniform density times exp(beta a) has mean coth beta - 1 / beta, variance 1 / beta^2 - 1 / sinh^2 beta.
    """
    rng, n, beta = np.random.default_rng(0), 8000, 3.0
    s, a = (rng.uniform(-1, 1, (2 * n, 1)).astype(np.float32) for _ in range(2))
    episodes = dataset.from_lengths(s, a, (s + a)[:, 0], np.ones(2 * n, bool), np.ones(n, np.int32))
    cfg = iql.Config(
        batch_size=256, hidden=(32, 32), beta=beta, tau=0.02, actor_lr=2e-3, critic_lr=2e-3, value_lr=2e-3,
        actor_steps=4000,
    )  # fmt: skip
    nets, state = train(cfg, EnvSpec("bandit", (1,), 1), episodes, 4000)
    seen = np.linspace(-0.8, 0.8, 50, dtype=np.float32)[:, None]
    k = np.sqrt(0.3 / 0.7)
    np.testing.assert_allclose(nets.value.apply(state.value.params, seen), seen[:, 0] + (1 - k) / (1 + k), atol=0.06)
    mean = nets.actor.apply(state.actor.params, seen)
    assert mean.mean() == pytest.approx(1 / np.tanh(beta) - 1 / beta, abs=0.03)
    np.testing.assert_allclose(mean, mean.mean(), atol=0.1)
    std = np.exp(iql.log_std(state.actor.params, cfg)[0])
    assert std == pytest.approx(np.sqrt(1 / beta**2 - 1 / np.sinh(beta) ** 2), rel=0.1)


def test_values_along_a_chain_tend_to_the_best_in_the_data():
    """Two states; a > 0 goes on and earns 1 behind the second, a < 0 ends at once with nothing, half of the time each.

    The expectile kappa of a fair coin between 0 and x is kappa x: V(1) = kappa, V(0) = gamma kappa^2, towards the best
    returns 1 and gamma as kappa tends to 1.  The policy's weights are then for a > 0 only.
    """
    rng, n, kappa, gamma = np.random.default_rng(0), 3000, 0.9, 0.8
    rows = []
    for _ in range(n):
        first, second = rng.uniform(0.2, 0.8, 2) * rng.choice([-1, 1], 2)
        one = [(0.0, first, 0.0, first < 0)]
        two = [(1.0, second, float(second > 0), True)]
        rows.append([*one, *(two if first > 0 else []), (2.0, 0.0, 0.0, False)])
    length = np.array([len(episode) - 1 for episode in rows])
    s, a, r, ended = (np.array(column) for column in zip(*(row for episode in rows for row in episode), strict=True))
    episodes = dataset.from_lengths(
        np.eye(3, dtype=np.float32)[s.astype(int)], a[:, None].astype(np.float32), r.astype(np.float32),
        ended.astype(bool), length,
    )  # fmt: skip
    cfg = iql.Config(
        batch_size=256, hidden=(32, 32), expectile=kappa, discount=gamma, beta=20.0, tau=0.02, policy="deterministic",
        order="corl", actor_lr=1e-3, critic_lr=2e-3, value_lr=2e-3, actor_steps=0,
    )  # fmt: skip
    nets, state = train(cfg, EnvSpec("chain", (3,), 1), episodes, 3000)
    v = nets.value.apply(state.value.params, np.eye(3, dtype=np.float32)[:2])
    np.testing.assert_allclose(v, [gamma * kappa**2, kappa], atol=0.05)
    action = nets.actor.apply(state.actor.params, np.eye(3, dtype=np.float32)[:2])
    np.testing.assert_allclose(action[:, 0], 0.5, atol=0.06)  # the mean of those above 0
