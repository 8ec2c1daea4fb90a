"""CQL: the penalty's invariants, losses from one set of parameters, weights of rows, bandits with known values."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import cql
from core import batches, dataset, loop
from core.config import ConfigError
from core.distributions import TanhGaussian
from core.networks import Net
from core.types import EnvSpec, Start
from tests.algos import contracts
from tests.algos.problems import NORM, SPEC, random_batch, same

CFG = cql.Config(batch_size=16, hidden=(8, 8), samples=3, critic_head_weights="orthogonal")
B, A, N = 16, 2, 3


def begin(cfg=CFG, seed=0):
    """The first state, with targets apart from the critics."""
    state = cql.make(cfg, SPEC).init(jax.random.key(seed), Start(NORM))
    return state._replace(critic_target=jax.tree.map(lambda x: x + 0.1, state.critic_target))


def random_draws(seed=0, max_backup=False):
    rng = np.random.default_rng(seed)
    one, many = rng.normal(size=(2, B, A)), rng.normal(size=(3, N, B, A))
    arrays = (one[0], many[0] if max_backup else one[1], rng.uniform(-1, 1, (N, B, A)), many[1], many[2])
    return cql.Draws(*(jnp.asarray(x, jnp.float32) for x in arrays))


def updated(cfg=CFG, state=None, batch=None, draws=None):
    state = begin(cfg) if state is None else state
    batch = cql.to_batch(NORM, random_batch(), cfg) if batch is None else batch
    draws = random_draws(max_backup=cfg.max_backup) if draws is None else draws
    return jax.jit(lambda *x: cql.update_with(*x, cql.networks(cfg, SPEC), cfg))(state, batch, draws)


# --- the penalty ---
def penalty(columns, density, q=None, cfg=CFG):
    q = np.zeros((2, columns.shape[2])) if q is None else q
    return cql.conservative_gap(*(jnp.asarray(x, jnp.float32) for x in (q, columns, density)), cfg)


@pytest.fixture(scope="module")
def table():
    """Q of columns [2, 6, B], their log-densities [6, B] and Q of the data's actions [2, B]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 6, B)), rng.normal(size=(6, B)), rng.normal(size=(2, B))


def test_the_gap_is_a_soft_maximum_less_q(table):
    columns, density, q = table
    for temperature in (0.5, 2.0):
        cfg = replace(CFG, temperature=temperature)
        wanted = temperature * np.log(np.exp((columns - density) / temperature).sum(1)) - q
        np.testing.assert_allclose(penalty(columns, density, q, cfg), wanted, rtol=1e-5, atol=1e-5)
        plain = replace(cfg, importance_sampling=False)
        seen = np.concatenate([columns, q[:, None]], 1)
        wanted = temperature * np.log(np.exp(seen / temperature).sum(1)) - q
        np.testing.assert_allclose(penalty(columns, density, q, plain), wanted, rtol=1e-5, atol=1e-5)


def test_the_gap_of_no_temperature_is_that_of_the_maximum(table):
    columns, density, q = table
    wanted = (columns - density).max(1) - q
    np.testing.assert_allclose(penalty(columns, density, q, replace(CFG, temperature=1e-4)), wanted, atol=1e-3)


def test_the_gap_does_not_see_a_constant_and_counts_columns(table):
    columns, density, q = table
    np.testing.assert_allclose(penalty(columns + 7, density, q + 7), penalty(columns, density, q), atol=1e-5)
    one = penalty(columns[:, :1], density[:1], q)
    many = penalty(np.repeat(columns[:, :1], 5, 1), np.repeat(density[:1], 5, 0), q)
    np.testing.assert_allclose(many, one + np.log(5), rtol=1e-5, atol=1e-5)


def test_the_gap_is_clipped_row_by_row(table):
    columns, density, q = table
    free = penalty(columns, density, q)
    low, high = np.quantile(free, [0.3, 0.7])
    clipped = penalty(columns, density, q, replace(CFG, gap_clip=(float(low), float(high))))
    np.testing.assert_allclose(clipped, np.clip(free, low, high), rtol=1e-6)
    np.testing.assert_allclose(
        penalty(columns, density, q, replace(CFG, gap_clip=(None, float(high)))), np.minimum(free, high), rtol=1e-6
    )


def test_columns_and_their_densities():
    """Uniform ones weigh 2^-A; those of the policies are drawn at s and s', with densities of their own samples."""
    rng = np.random.default_rng(2)
    laws = [TanhGaussian(*jnp.asarray(0.4 * rng.normal(size=(2, B, A)), jnp.float32)) for _ in range(2)]
    draws = random_draws()
    actions, density = cql.proposals(*laws, draws)
    np.testing.assert_array_equal(actions[:N], draws.uniform)
    np.testing.assert_allclose(-density[:N], A * np.log(2), rtol=1e-6)
    for law, normal, part in ((laws[0], draws.now, slice(N, 2 * N)), (laws[1], draws.after, slice(2 * N, 3 * N))):
        mean, std = np.float64(law.mean), np.exp(np.float64(law.log_std))
        action = np.tanh(mean + std * normal)
        np.testing.assert_allclose(actions[part], action, rtol=1e-4, atol=1e-5)
        log = -np.square(normal) / 2 - np.log(std * np.sqrt(2 * np.pi)) - np.log(1 - action**2)
        np.testing.assert_allclose(density[part], log.sum(-1), rtol=1e-3, atol=1e-3)


def test_saturated_actions_keep_their_density():
    """tanh(12) is 1 in float32, whose own density would be infinite: that of u = 12 is known."""
    law = TanhGaussian(jnp.full((B, A), 12.0), jnp.zeros((B, A)))
    draws = random_draws()._replace(now=jnp.zeros((N, B, A)))
    actions, density = cql.proposals(law, law, draws)
    assert (actions[N : 2 * N] == 1).all()
    wanted = A * (-np.log(2 * np.pi) / 2 - 2 * (np.log(2) - 12 - np.log1p(np.exp(-24.0))))
    np.testing.assert_allclose(density[N : 2 * N], wanted, rtol=1e-6)


def test_the_data_is_pulled_up_by_w_over_b_and_columns_down_by_as_much():
    """The gradient in Q of the penalty alone: -w / B at the data, a softmax of w / B over the columns."""
    rng = np.random.default_rng(3)
    values = jnp.asarray(rng.normal(size=(2, 1 + 3 * N, B)), jnp.float32)
    density = jnp.asarray(rng.normal(size=(3 * N, B)), jnp.float32)
    nets = cql.Networks(None, Net(None, lambda q, obs, action: q))
    batch = cql.to_batch(NORM, random_batch(), CFG)

    def slopes(cfg, e):
        """dL / dQ where critic e's targets are its values."""
        args = values[e, 0], (jnp.zeros((3 * N, B, A)), density), 0.7, batch, nets, cfg
        return jax.grad(lambda q: cql.critic_loss(q, *args)[0])(values)[e]

    for lagrange in (False, True):
        cfg = replace(CFG, conservative_weight=5.0, lagrange=lagrange)
        for e in range(2):
            slope = slopes(cfg, e)
            np.testing.assert_allclose(slope[0], -0.7 * 5 / B, rtol=1e-6)
            soft = np.asarray(jax.nn.softmax(values[e, 1:] - density, axis=0))
            np.testing.assert_allclose(slope[1:], 0.7 * 5 / B * soft, rtol=1e-4, atol=1e-7)
            assert not np.asarray(slopes(replace(cfg, gap_clip=(None, -100.0)), e)).any()


# --- the whole update ---
def test_a_weighted_row_is_as_many_rows():
    """Weights of 2 and 0 give the step, of every network, that the rows of weight 2 give alone."""
    cfg = replace(CFG, lagrange=True, max_backup=True, backup_entropy=True)
    batch, draws = cql.to_batch(NORM, random_batch(), cfg), random_draws(max_backup=True)
    half = jax.tree.map(lambda x: x[: B // 2], batch)
    cut = cql.Draws(draws.policy[: B // 2], *(x[:, : B // 2] for x in draws[1:]))
    alone, _ = updated(cfg, None, half, cut)
    weight = jnp.where(jnp.arange(B) < B // 2, 2.0, 0.0)
    weighted, _ = updated(cfg, None, batch._replace(weight=weight), draws)
    plain, _ = updated(cfg, None, batch, draws)
    fields = ("actor", "critic", "critic_target", "log_alpha", "log_alpha_prime")
    for name in fields:
        contracts.close(getattr(weighted, name), getattr(alone, name), rtol=1e-3)
    assert not any(same(getattr(plain, name), getattr(alone, name)) for name in fields)


def test_weights_come_with_the_batch():
    weight = jnp.arange(B, dtype=jnp.float32)
    t = random_batch()
    assert cql.to_batch(NORM, t, CFG).weight is None
    np.testing.assert_array_equal(cql.to_batch(NORM, t._replace(extras={"weight": weight}), CFG).weight, weight)
    action = cql.to_batch(NORM, t, replace(CFG, action_limit=0.5)).action
    np.testing.assert_array_equal(action, np.clip(t.action, -0.5, 0.5))


def test_every_loss_reads_the_parameters_at_the_start():
    """Nobody's step depends on anybody else's learning rate."""
    cfg = replace(CFG, lagrange=True, backup_entropy=True, actor_lr=1e-2, critic_lr=1e-2)
    both, _ = updated(cfg)
    for name, rate in (("actor", "critic_lr"), ("log_alpha", "critic_lr"), ("critic", "actor_lr")):
        still, _ = updated(replace(cfg, **{rate: 0.0}))
        contracts.close(getattr(both, name).params, getattr(still, name).params, rtol=0, atol=1e-7)
        assert not same(getattr(both, name).params, getattr(begin(cfg), name).params)


def test_targets_move_by_tau_in_each_call():
    state = begin()
    new, _ = updated(state=state)
    moved = jax.tree.map(lambda t, o: 0.995 * t + 0.005 * o, state.critic_target, new.critic.params)
    contracts.close(new.critic_target, moved)
    assert not same(state.critic_target, new.critic_target)


def test_the_temperature_rises_where_entropy_is_short():
    """The gradient in log alpha is entropy - H, whatever alpha is."""
    batch = cql.to_batch(NORM, random_batch(), CFG)
    for entropy, sign in ((-5.0, 1), (5.0, -1)):
        slope, _ = jax.grad(cql.alpha_loss, has_aux=True)(jnp.asarray(-1.5), jnp.full(B, -entropy), batch, CFG)
        np.testing.assert_allclose(slope, entropy + A, rtol=1e-6)
        assert np.sign(-slope) == sign


def test_the_multiplier_rises_where_the_gap_is_too_wide():
    cfg = replace(CFG, lagrange=True, target_gap=0.8, conservative_weight=5.0)
    for gap, wanted in ((1.8, -5.0), (0.3, 2.5)):
        slope, metrics = jax.grad(cql.alpha_prime_loss, has_aux=True)(jnp.asarray(1.0), jnp.asarray(gap), cfg)
        np.testing.assert_allclose(slope, wanted * np.e, rtol=1e-5)
        assert metrics["alpha_prime/alpha_prime"] == pytest.approx(np.e)
    slope, metrics = jax.grad(cql.alpha_prime_loss, has_aux=True)(jnp.asarray(20.0), jnp.asarray(1.8), cfg)
    assert (float(slope), float(metrics["alpha_prime/alpha_prime"])) == (0.0, 1e6)
    before = begin(cfg)
    held, metrics = updated(cfg, before)
    assert held.log_alpha_prime.params != before.log_alpha_prime.params
    excess = np.e * 5 * 2 * (metrics["critic/gap"] - 0.8)
    np.testing.assert_allclose(metrics["critic/loss"], metrics["critic/td"] + excess, rtol=1e-5)
    free, metrics = updated(replace(cfg, lagrange=False), before)
    assert same(free.log_alpha_prime, before.log_alpha_prime)
    np.testing.assert_allclose(metrics["critic/loss"], metrics["critic/td"] + 10 * metrics["critic/gap"], rtol=1e-5)


def test_a_temperature_that_is_not_learned_stays():
    cfg = replace(CFG, learn_alpha=False, alpha_multiplier=0.3)
    before = begin(cfg)
    after, metrics = updated(cfg, before)
    assert same(after.log_alpha, before.log_alpha)
    assert "alpha/loss" not in metrics
    loss = {m: float(updated(replace(cfg, alpha_multiplier=m), before)[1]["actor/loss"]) for m in (0.3, 0.6, 0.9)}
    assert loss[0.9] - loss[0.6] == pytest.approx(loss[0.6] - loss[0.3], rel=1e-3)  # linear in alpha
    np.testing.assert_allclose(loss[0.6] - loss[0.3], -0.3 * metrics["actor/entropy"], rtol=1e-3)


def test_the_largest_of_many_backups():
    """Of equal draws it is the one, entropy too; of others it is never less; a terminal step has none."""
    plain = replace(CFG, backup_entropy=True)
    many = replace(plain, max_backup=True)
    state, batch = begin(), cql.to_batch(NORM, random_batch(), CFG)
    nets = cql.networks(CFG, SPEC)
    law = nets.actor.apply(state.actor.params, batch.next_obs)

    def value(cfg, noise, alpha=0.5):
        return np.asarray(cql.next_value(state.critic_target, law, alpha, batch, noise, nets, cfg))

    draws = random_draws(max_backup=True).target
    each = np.stack([value(plain, draws[i]) for i in range(N)])
    np.testing.assert_allclose(value(many, jnp.stack([draws[0]] * N)), each[0], rtol=1e-5)
    without = np.stack([value(plain, draws[i], 0.0) for i in range(N)])
    np.testing.assert_allclose(value(many, draws, 0.0), without.max(0), rtol=1e-5)
    best = without.argmax(0)
    np.testing.assert_allclose(value(many, draws), each[best, np.arange(B)], rtol=1e-5)
    with pytest.raises(ValueError, match="noise"):
        value(plain, draws)
    with pytest.raises(ValueError, match="noise"):
        value(many, draws[0])


# --- options ---
def test_published_weights():
    state = begin(cql.Config(hidden=(32, 16)))
    critic, actor = (net.params for net in (state.critic, state.actor))
    first, last = (np.asarray(critic["params"][f"Dense_{i}"]["kernel"][0]) for i in (0, 2))
    np.testing.assert_allclose(first @ first.T, 2 * np.eye(5), atol=1e-5)
    assert np.linalg.norm(last) == pytest.approx(0.01, rel=1e-4)
    assert not (critic["params"]["Dense_0"]["kernel"][0] == critic["params"]["Dense_0"]["kernel"][1]).any()
    head = actor["net"]["params"]["Dense_2"]
    bound = 0.01 * np.sqrt(6 / (16 + 4))
    assert 0.8 * bound < np.abs(head["kernel"]).max() <= bound
    assert not head["bias"].any()
    assert np.abs(actor["net"]["params"]["Dense_0"]["bias"]).max() > 0
    np.testing.assert_array_equal(actor["log_std"], [1, -1])
    assert float(state.log_alpha.params) == 0
    assert float(state.log_alpha_prime.params) == 1
    deep = begin(replace(CFG, actor_hidden=(4,)))
    assert len(deep.actor.params["net"]["params"]) == 2
    assert len(deep.critic.params["params"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 0},
        {"temperature": 0.0},
        {"alpha_multiplier": -1.0},
        {"action_limit": 0.0},
        {"conservative_weight": -1.0},
        {"tau": 5.0},
        {"gap_clip": (1.0, -1.0)},
    ],
)
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        cql.make(replace(CFG, **change), SPEC)


@contracts.REFUSED
def test_tasks_that_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        cql.make(CFG, SPEC._replace(**change))


# --- contracts ---
EVERYTHING = cql.make(replace(CFG, max_backup=True, backup_entropy=True, lagrange=True), SPEC)


def test_compiled_once_pure_and_the_same_alone_or_among_seeds():
    contracts.compiled_once_pure_and_alone_as_among_seeds(EVERYTHING)


def test_no_key_is_used_twice():
    contracts.no_key_is_used_twice(EVERYTHING)


def test_normalisation_is_the_same_in_training_and_acting():
    contracts.normalised_in_training_and_acting(EVERYTHING, {})


def test_acting():
    contracts.explores_within_bounds_and_is_judged_without_noise(EVERYTHING)


# --- learning ---
GRID = np.linspace(-1, 1, 401)


def bandit(n=20_000, seed=0):
    """One state, one step: actions of density (1 - 0.8 a) / 2 on [-1, 1], reward a: few data where it pays most."""
    u = np.random.default_rng(seed).uniform(size=2 * n)
    action = (1 - np.sqrt(1 + 0.8 * (0.8 + 2 - 4 * u))) / 0.8  # the inverse of the distribution function
    action = action[:, None].astype(np.float32)
    state = np.zeros((2 * n, 1), np.float32)
    return dataset.from_lengths(state, action, action[:, 0], np.ones(2 * n, bool), np.ones(n, np.int32))


def test_the_bandit_is_what_it_says():
    action = bandit().action[:, 0]
    share, _ = np.histogram(action, np.linspace(-1, 1, 11), density=True)
    np.testing.assert_allclose(share, (1 - 0.8 * np.linspace(-0.9, 0.9, 10)) / 2, atol=0.03)


def fixed_point(weight):
    """Q that CQL(H) ends at on the bandit's grid: 2 (Q - r) p + w (exp Q / sum exp Q - p) = 0, by damped steps."""
    data, q = (1 - 0.8 * GRID) / 2, GRID.copy()
    for _ in range(4_000):
        soft = np.exp(q) / np.trapezoid(np.exp(q), GRID)
        q += 0.01 * (GRID - weight / 2 * (soft / data - 1) - q)
    return q


def learn(weight, episodes, samples):
    """(Q f[401] on the grid, the policy's action) after training."""
    spec, norm = EnvSpec("bandit", (1,), 1), dataset.norm(episodes)
    cfg = cql.Config(
        state_norm="none", hidden=(32, 32), batch_size=128, samples=samples, actor_lr=3e-3, critic_lr=3e-3,
        conservative_weight=weight, learn_alpha=False, alpha_multiplier=0.1,
    )  # fmt: skip
    algorithm, nets = cql.make(cfg, spec), cql.networks(cfg, spec)
    run = loop.begin(algorithm, Start(norm), (0,))
    run, _ = jax.jit(loop.epoch(algorithm, 1_500))(run, batches.data(episodes, norm))
    state = jax.tree.map(lambda x: x[0], run.algo)
    q = nets.critic.apply(state.critic.params, np.zeros((401, 1), np.float32), GRID[:, None].astype(np.float32))
    action = nets.actor.apply(state.actor.params, np.zeros((1, 1), np.float32)).mode()
    return np.asarray(q).mean(0), float(action[0, 0])


def test_values_are_those_of_the_conservative_fixed_point():
    """Without the penalty Q is the reward and the policy goes to 1; with it, Q is the fixed point of Eq. (4).

    Its values lie below the rewards where the data are few, above where they are many, and the policy turns from the
    best action to the best of those values.
    """
    episodes = bandit()
    free, taken = learn(0.0, episodes, samples=1)
    np.testing.assert_allclose(free, GRID, atol=0.03)
    assert taken > 0.85
    wanted, (held, taken) = fixed_point(1.0), learn(1.0, episodes, samples=16)
    inside = np.abs(GRID) < 0.85
    np.testing.assert_allclose(held[inside], wanted[inside], atol=0.1)
    assert (held < GRID)[GRID > 0.2].all()
    assert (held > GRID)[GRID < -0.2].all()
    assert taken == pytest.approx(GRID[wanted.argmax()], abs=0.15)
