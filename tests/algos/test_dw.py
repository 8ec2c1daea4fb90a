"""Density-ratio weighting around IQL, TD3+BC and CQL: rules, loss, order, contracts, weights whose values are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import cql, dw, dw_cql, dw_iql, dw_td3_bc, iql, td3_bc
from core import batches, dataset, loop
from core.config import ConfigError
from core.types import EnvSpec, Start
from tests.algos.problems import NORM, SPEC, random_batch, random_dataset, same
from tests.algos.test_iql import mlp

SIZES = {"batch_size": 16, "hidden": (8, 8)}
PAIRS = {"iql": (dw_iql, iql), "td3_bc": (dw_td3_bc, td3_bc), "cql": (dw_cql, cql)}
EACH = pytest.mark.parametrize("name", PAIRS)


def settings(name, **change):
    """(module, config, the base's module, its config)."""
    module, base = PAIRS[name]
    sizes = {**SIZES, **({"samples": 2} if name == "cql" else {})}
    return module, module.Config(**sizes, **change), base, base.Config(**sizes)


def networks(cfg):
    return dw.networks(cfg.hidden, "torch")


def transition(seed=0):
    """A random batch with random r^."""
    reward = jnp.asarray(np.random.default_rng(seed + 50).uniform(size=16), jnp.float32)
    return random_batch(seed)._replace(extras={"ratio_reward": reward})


def ratio_params(nets, scale=1.0, seed=1):
    obs, action = jnp.zeros((1, 3)), jnp.zeros((1, 2))
    keys = jax.random.split(jax.random.key(seed))
    params = {"sa": nets.sa.init(keys[0], obs, action), "s": nets.s.init(keys[1], obs)}
    return jax.tree.map(lambda x: scale * x, params)


def softmax(x):
    x = np.exp(np.float64(x))
    return x / x.sum()


def numpy_rule(name, f_sa, f_s, temperature, bound):
    """(logits of rows, logits of the penalty)."""
    clip = lambda x: np.clip(x, -bound, bound)  # noqa: E731
    if name == "td3_bc":
        return clip(f_sa + f_s) / temperature, clip(f_s) / temperature
    if name == "cql":
        both = clip(f_sa / temperature) + clip(f_s / temperature)
    else:
        both = (clip(f_sa) + clip(f_s)) / temperature
    return both, both


@EACH
def test_weights_and_loss_equal_their_equations(name):
    module, cfg, _, _ = settings(name, ratio_temperature=1.7, ratio_clip=-0.4, ratio_flow=0.3, ratio_kl=0.7,
                                 ratio_flow_discount=0.9)  # fmt: skip
    nets = networks(cfg)
    params, batch = ratio_params(nets, 3.0), dw.to_batch(NORM, transition())
    both = np.concatenate([batch.obs, batch.action], -1)
    f_sa, f_s, after = (mlp(params[k], x)[:, 0] for k, x in (("sa", both), ("s", batch.obs), ("s", batch.next_obs)))
    assert (np.abs(f_sa) > 0.6).any()
    assert (np.abs(f_sa / 1.7) > 0.6).any()
    assert (np.abs(f_sa) < 0.6).any()
    row, penalised = (softmax(x) for x in numpy_rule(name, f_sa, f_s, 1.7, 0.6))
    given = dw.weights(params, batch, nets, cfg, module.logits)
    np.testing.assert_allclose(given["weight"], 16 * row, rtol=1e-4)
    assert given["weight"].mean() == pytest.approx(1, rel=1e-5)
    assert ("policy_weight" in given) == (name == "td3_bc")
    if name == "td3_bc":
        np.testing.assert_allclose(given["policy_weight"], 16 * penalised, rtol=1e-4)
    _, metrics = dw.loss(params, batch, nets, cfg, module.logits)
    reward = (row * np.asarray(batch.reward)).sum()
    flow = np.square(0.9 * np.exp((f_sa + f_s) / 1.7) - np.exp(after / 1.7)).mean()
    kl = (penalised * np.log(penalised)).sum()
    for key, wanted in (("reward", reward), ("flow", flow), ("kl", kl)):
        np.testing.assert_allclose(metrics[f"ratio/{key}"], wanted, rtol=1e-4)
    np.testing.assert_allclose(metrics["ratio/loss"], -reward + 0.3 * flow + 0.7 * kl, rtol=1e-4)


@EACH
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_clip_bounds_how_much_one_row_outweighs_another(name, temperature):
    module, cfg, _, _ = settings(name, ratio_temperature=temperature)
    far = jnp.array([-50.0, 50.0])
    weight = jax.nn.softmax(module.logits(far, far, cfg).row)
    exponent = {"iql": 4 * 1.2 / temperature, "td3_bc": 2 * 1.2 / temperature, "cql": 4 * 1.2}[name]
    np.testing.assert_allclose(weight[1] / weight[0], np.exp(exponent), rtol=1e-3)


def begin(name, **change):
    """(algorithm, state, the base's record)."""
    module, cfg, base, own = settings(name, **change)
    algorithm = module.make(cfg, SPEC)
    return algorithm, jax.jit(algorithm.init)(jax.random.key(0), Start(NORM)), base.make(own, SPEC)


@EACH
def test_uniform_weights_change_nothing(name):
    """With f = 0 the base's networks take the steps that they take without weights, from the same start and keys."""
    algorithm, state, base = begin(name, ratio_lr=0.0)
    zero = jax.tree.map(jnp.zeros_like, state.ratio.params)
    state = state._replace(ratio=state.ratio._replace(params=zero))
    alone = jax.jit(base.init)(jax.random.key(0), Start(NORM))
    assert same(state.base, alone)
    weighted, unweighted = jax.jit(algorithm.update), jax.jit(base.update)
    for step in range(2):
        t, key = transition(step), jax.random.key(step)
        state, metrics = weighted(state, t, key)
        alone, _ = unweighted(alone, t._replace(extras={}), key)
        assert (metrics["ratio/weight_max"], metrics["ratio/weight_min"]) == pytest.approx((1, 1), rel=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), state.base, alone)
    assert same(state.ratio.params, zero)


@EACH
def test_the_base_gets_the_weights_of_the_networks_before_their_step(name):
    algorithm, state, base = begin(name, ratio_lr=0.05)
    module, cfg, _, _ = settings(name, ratio_lr=0.05)
    weights = {"critic_weights": cfg.critic_weights} if name == "cql" else {"weights": cfg.weights}
    nets = dw.networks(cfg.hidden, *weights.values())
    t, key = transition(), jax.random.key(1)
    after, _ = jax.jit(algorithm.update)(state, t, key)
    assert not same(after.ratio.params, state.ratio.params)
    update = jax.jit(base.update)

    def base_with(params):
        given = dw.weights(params, dw.to_batch(NORM, t), nets, cfg, module.logits)
        return update(state.base, t._replace(extras=given), key)[0]

    def difference(other):
        return max(float(np.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (after.base, other)), strict=True))

    assert difference(base_with(state.ratio.params)) < 1e-5 < difference(base_with(after.ratio.params))
    assert difference(update(state.base, t._replace(extras={}), key)[0]) > 1e-5


def test_the_policy_of_td3_bc_has_weights_of_its_own():
    """Rows whose states differ, not their pairs: the joint logits are equal, so only the Q term sees a difference."""
    cfg = dw_td3_bc.Config()
    f_s = jnp.array([1.0, -1.0])
    logits = dw_td3_bc.logits(-f_s, f_s, cfg)
    np.testing.assert_allclose(logits.row, 0)
    np.testing.assert_allclose(logits.policy, f_s)


# --- rewards and successors ---
@EACH
def test_rewards_are_scaled_over_the_dataset(name):
    module, cfg, _, _ = settings(name)
    episodes = random_dataset()
    algorithm = module.make(cfg, SPEC)
    data = batches.data(episodes, NORM, extra=algorithm.prepare(episodes, Start(NORM)))
    batch = algorithm.sample(data, jax.random.key(0))
    reward, every = episodes.reward[batch.extras["row"]], episodes.reward[episodes.row].astype(np.float64)
    wanted = reward / every.std() if name == "iql" else (reward - every.min()) / np.ptp(every)
    np.testing.assert_allclose(batch.extras["ratio_reward"], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(batch.reward, reward)
    constant = episodes._replace(reward=np.full_like(episodes.reward, 0.5))
    with pytest.raises(ConfigError, match=r"all rewards are 0\.5"):
        algorithm.prepare(constant, Start(NORM))


@pytest.mark.parametrize("kind", ["std", "range"])
def test_a_factor_and_a_shift_of_all_rewards_change_no_step(kind):
    cfg = dw_iql.Config(ratio_reward=kind)
    nets, raw = networks(replace(cfg, **SIZES)), np.random.default_rng(0).normal(size=16).astype(np.float32)
    episodes, gradients = random_dataset(), []
    for factor, shift in ((1.0, 0.0), (30.0, -1.0)):
        given = dw.reward_scale(episodes._replace(reward=factor * episodes.reward + shift), kind)
        reward = (factor * raw + shift - given.shift) / given.scale
        batch = dw.to_batch(NORM, transition())._replace(reward=reward)
        gradients.append(jax.grad(dw.loss, has_aux=True)(ratio_params(nets), batch, nets, cfg, dw_iql.logits)[0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), *gradients)


def test_the_flow_leads_into_no_other_episode():
    """The successor of a transition that ended the task is its own last state, not where the next episode starts."""
    n = 50
    state = np.arange(2 * n, dtype=np.float32)[:, None] * np.ones(3, np.float32)  # episode i: 2 i, then 2 i + 1
    zero = np.zeros((2 * n, 2), np.float32)
    episodes = dataset.from_lengths(
        state, zero, np.arange(2 * n, dtype=np.float32), np.ones(2 * n, bool), np.ones(n, np.int32)
    )
    algorithm = dw_iql.make(dw_iql.Config(**SIZES), SPEC)
    data = batches.data(episodes, NORM, extra=algorithm.prepare(episodes, Start(NORM)))
    batch = dw.to_batch(NORM, algorithm.sample(data, jax.random.key(0)))
    np.testing.assert_array_equal(batch.next_obs, batch.obs + 1)


@pytest.mark.parametrize(
    "change",
    [{"ratio_temperature": 0.0}, {"ratio_clip": -1.0}, {"ratio_lr": -1.0}, {"ratio_flow": -1.0}, {"ratio_kl": -1.0},
     {"ratio_reward": "max"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        dw_td3_bc.make(dw_td3_bc.Config(**change), SPEC)


def test_published_values():
    read = lambda cfg: (cfg.ratio_temperature, cfg.ratio_clip, cfg.ratio_lr, cfg.ratio_kl, cfg.ratio_reward)  # noqa: E731
    assert read(dw_iql.Config()) == (1.0, 0.2, 1e-4, 0.2, "std")
    assert read(dw_td3_bc.Config()) == (1.0, 0.2, 1e-4, 0.2, "range")
    assert read(dw_cql.Config()) == (1.0, 0.2, 1e-4, 0.0, "range")
    for module, base in PAIRS.values():
        own, theirs = vars(module.Config()), vars(base.Config())
        assert theirs == {key: own[key] for key in theirs}


# --- contracts ---
@EACH
def test_fused_and_alone(name):
    """An epoch of four is two of two, to the bit; a seed alone is a seed among others."""
    algorithm, _, _ = begin(name)
    episodes = random_dataset()
    start = Start(dataset.norm(episodes, "standard"))
    data = batches.data(episodes, start.norm, extra=algorithm.prepare(episodes, start))
    four, two = (jax.jit(loop.epoch(algorithm, n)) for n in (4, 2))
    run = loop.begin(algorithm, start, (0, 1))
    together, _ = four(run, data)
    assert same(together.algo, two(two(run, data)[0], data)[0].algo)
    alone, _ = four(jax.tree.map(lambda x: x[1:], run), data)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y[0], rtol=1e-5, atol=1e-6), together.algo, alone.algo)


def test_no_key_is_used_twice():
    algorithm, state, _ = begin("iql")
    episodes = random_dataset()
    data = batches.data(episodes, NORM, extra=algorithm.prepare(episodes, Start(NORM)))
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        batch = jax.jit(algorithm.sample)(data, jax.random.fold_in(key, 1))
        jax.jit(algorithm.update)(state, batch, jax.random.fold_in(key, 2))
        jax.jit(algorithm.init)(jax.random.fold_in(key, 3), Start(NORM))


@EACH
def test_it_acts_as_its_base(name):
    algorithm, state, base = begin(name)
    obs, key = random_batch().obs, jax.random.key(0)
    for own, theirs in ((algorithm.act, base.act), (algorithm.act_eval, base.act_eval)):
        assert (own(state, obs, (), key).action == theirs(state.base, obs, (), key).action).all()


# --- learning ---
def mixture(n=4000, seed=0):
    """One-step episodes; half of the actions are about +0.5 and earn 1, half about -0.5 and earn 0."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-1, 1, (2 * n, 1)).astype(np.float32)
    good = rng.random(2 * n) < 0.5
    a = np.where(good, 0.5, -0.5) + rng.uniform(-0.1, 0.1, 2 * n)
    return dataset.from_lengths(
        s, a[:, None].astype(np.float32), good.astype(np.float32), np.ones(2 * n, bool), np.ones(n, np.int32)
    )


def trained(module, cfg, updates, episodes):
    """(algorithm, state, a large batch, its weights)."""
    algorithm = module.make(cfg, EnvSpec("mixture", (1,), 1))
    start = Start(dataset.norm(episodes))
    data = batches.data(episodes, start.norm, extra=algorithm.prepare(episodes, start))
    run, _ = jax.jit(loop.epoch(algorithm, updates))(loop.begin(algorithm, start, (0,)), data)
    assert not run.failed.any()
    state = jax.tree.map(lambda x: x[0], run.algo)
    many = module.make(replace(cfg, batch_size=2000), EnvSpec("mixture", (1,), 1)).sample(data, jax.random.key(5))
    nets = dw.networks(cfg.hidden, "torch")
    return (
        algorithm,
        state,
        many,
        dw.weights(state.ratio.params, dw.to_batch(start.norm, many), nets, cfg, module.logits),
    )


LEARNING = {"batch_size": 256, "hidden": (16, 16), "ratio_flow": 0.0, "ratio_lr": 3e-3}


def test_weights_follow_the_reward_and_the_value_follows_the_weights():
    """Without the flow the best weights are exp(r^ / K); r^ is 2 r here, so that K = 1 gives e^2 : 1.

    The value of IQL at kappa = 1/2 is then the weighted mean e^2 / (1 + e^2) of the reward, where it was 1/2.
    """
    cfg = dw_iql.Config(**LEARNING, ratio_kl=1.0, expectile=0.5, value_lr=3e-3, critic_lr=3e-3, actor_lr=1e-3, tau=0.05)
    _, state, many, given = trained(dw_iql, cfg, 1200, mixture())
    good = np.asarray(many.reward) > 0
    weight = np.asarray(given["weight"])
    assert np.log(weight[good].mean() / weight[~good].mean()) == pytest.approx(2, abs=0.15)
    nets = iql.networks(cfg, EnvSpec("mixture", (1,), 1))
    value = nets.value.apply(state.base.value.params, many.obs.state).mean()
    assert value == pytest.approx(np.e**2 / (1 + np.e**2), abs=0.04)


def test_cloning_is_weighted():
    """alpha = 0 clones.  Nothing holds the joint weights but their clip: e^2.4 : 1 between actions of +-0.5."""
    cfg = dw_td3_bc.Config(**LEARNING, alpha=0.0, actor_lr=3e-3)
    algorithm, state, many, given = trained(dw_td3_bc, cfg, 1200, mixture())
    good = np.asarray(many.reward) > 0
    weight = np.asarray(given["weight"])
    assert np.log(weight[good].mean() / weight[~good].mean()) == pytest.approx(2.4, abs=0.1)
    assert np.ptp(given["policy_weight"]) < 0.1  # states tell nothing
    action = algorithm.act_eval(state, many.obs, (), jax.random.key(0)).action
    share = np.exp(2.4) / (1 + np.exp(2.4))
    np.testing.assert_allclose(action.mean(), 0.5 * (2 * share - 1), atol=0.04)


def test_weights_of_cql_reach_their_clip():
    """K = 0: f_sa from -1.2 to 1.2.  f_s fits the noise of the draws, and so only actions of one state are compared."""
    cfg = dw_cql.Config(**LEARNING, samples=2)
    _, state, many, _ = trained(dw_cql, cfg, 600, mixture())
    good = np.asarray(many.reward) > 0
    other = many._replace(action=-many.action)
    both = jax.tree.map(lambda x, y: jnp.concatenate((x, y)), many, other)
    nets = dw.networks(cfg.hidden, "torch")
    batch = dw.to_batch(dataset.norm(mixture()), both)
    weight = np.asarray(dw.weights(state.ratio.params, batch, nets, cfg, dw_cql.logits)["weight"]).reshape(2, -1)
    ratio = np.log(weight[0] / weight[1]) * np.where(good, 1, -1)
    np.testing.assert_allclose(ratio.mean(), 2.4, atol=0.05)
