"""FQL: its losses against NumPy, where gradients go, parents, learning on a toy with a known answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algos
from algos import chain_bc, fql
from core import batches, critics, dataset, loop, online, optim, sampling
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError
from core.critics import Network
from core.dataset import identity_norm
from core.rng import streams
from core.types import EnvSpec, Norm, Observation, Start, Transition
from envs.toys import build
from tests.conftest import match_arrays

SPEC = EnvSpec("toy/match", (2,), 2, max_steps=10, chunk=2)
NET = PolicyNet(hidden=(16,), residual=False, time_dim=4, denoised_clip=0.0)
CONFIG = fql.Config(
    net=NET, denoising=Denoising(steps=3), hidden=(16,), critic=Network((8,), "gelu", False, "before"), discount=0.9,
    reward_scale=0.1, flow_acts=1, batch_size=6,
)  # fmt: skip
NETS, NORM = fql.networks(CONFIG, SPEC), identity_norm(2, 2)
B, KEY = 6, jax.random.key(0)


def transitions() -> Transition:
    rng = np.random.default_rng(0)

    def seen() -> Observation:
        state, none = jnp.asarray(rng.normal(size=(B, 2)), jnp.float32), jnp.zeros(B)
        return Observation(state, jnp.zeros((B, 0)), none, none.astype(jnp.int32))

    action = jnp.asarray(rng.uniform(-1, 1, (B, 2, 2)), jnp.float32)
    terminated, truncated = jnp.arange(B) % 3 == 0, jnp.arange(B) % 3 == 1
    return Transition(seen(), action, jnp.arange(B) + 1.0, seen(), terminated, truncated)


@pytest.fixture(scope="module")
def setting():
    """(algorithm, state with targets apart from the critics and a mu that leaves [-1, 1], jitted update)."""
    algorithm = fql.make(CONFIG, SPEC)
    state = jax.jit(algorithm.init)(KEY, Start(NORM))
    actor = state.actor._replace(params=jax.tree.map(lambda x: 4 * x, state.actor.params))
    target = jax.tree.map(lambda x: x + 0.1, state.critic_target)
    return algorithm, state._replace(actor=actor, critic_target=target, step=jnp.int32(1)), jax.jit(algorithm.update)


def same(a, b) -> bool:
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def batch_of(t: Transition, time_limit: str = "bootstrap") -> critics.Batch:
    return critics.to_batch(t, lambda obs: obs.state, lambda action: action, 0.1, time_limit)


def test_targets_are_means_of_the_critics(setting):
    state, t, z = setting[1], transitions(), jax.random.normal(jax.random.key(1), (B, 2, 2))
    action = np.asarray(NETS.mu.apply(state.actor.params, t.next_obs.state, z))
    assert np.abs(action).max() > 1.5
    q = np.asarray(NETS.q.apply(state.critic_target, t.next_obs.state, np.clip(action, -1, 1)))
    for time_limit, over in (("bootstrap", t.terminated), ("terminate", t.terminated | t.truncated)):
        batch = batch_of(t, time_limit)
        y = 0.1 * np.asarray(t.reward) + 0.9 * (1 - np.asarray(over)) * (q[0] + q[1]) / 2
        target = fql.bootstrap(state.critic_target, state.actor.params, batch, z, NETS, CONFIG)
        np.testing.assert_allclose(target, y, rtol=1e-5)
    loss, _ = critics.q_loss(state.critic.params, target, batch, NETS.q)
    error = np.asarray(NETS.q.apply(state.critic.params, t.obs.state, t.action)) - y
    np.testing.assert_allclose(loss, (error[0] ** 2).mean() + (error[1] ** 2).mean(), rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_actors_loss_equals_its_equation(setting, normalize):
    state, t, config = setting[1], transitions(), dataclasses.replace(CONFIG, normalize_q=normalize)
    z, wanted = jax.random.normal(jax.random.key(2), (2, B, 2, 2))
    params, critic = state.actor.params, state.critic.params
    loss, slope = jax.value_and_grad(
        lambda params: fql.actor_loss(params, critic, t.obs.state, z, wanted, NETS, config)[0]
    )(params)
    action = np.asarray(NETS.mu.apply(params, t.obs.state, z))
    q = np.asarray(NETS.q.apply(critic, t.obs.state, np.clip(action, -1, 1))).mean(0)
    scale = 1 / np.abs(q).mean() if normalize else 1.0
    np.testing.assert_allclose(loss, 3 * np.square(action - wanted).mean() - scale * q.mean(), rtol=1e-5)

    def held(params):  # the scale is a constant to the gradient
        action = NETS.mu.apply(params, t.obs.state, z)
        value = NETS.q.apply(critic, t.obs.state, jnp.clip(action, -1, 1)).mean()
        return 3 * jnp.square(action - wanted).mean() - scale * value

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, jax.grad(held)(params))


def test_the_flow_only_imitates_and_nothing_moves_what_is_not_its_own(setting):
    _, state, update = setting
    t = transitions()
    new, metrics = update(state, t, KEY)
    fit = chain_bc.regression(state.flow.params, t.obs.state, t.action, streams(KEY, "fit").fit, NETS.given, CONFIG.fit)
    alone, cloning = optim.step(optim.adam(3e-4), chain_bc.loss, state.flow, NORM, t.obs, fit, NETS.given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.flow.params, alone.params)
    np.testing.assert_allclose(metrics["flow/loss"], cloning["loss"], rtol=1e-5)
    # another flow changes what is distilled, not the critics; other critics change mu, not the flow
    other, _ = update(state._replace(flow=jax.tree.map(lambda x: x * 2, state.flow)), t, KEY)
    assert same((other.critic, other.critic_target), (new.critic, new.critic_target))
    assert not same(other.actor, new.actor)
    other, _ = update(state._replace(critic=jax.tree.map(lambda x: x * 2, state.critic)), t, KEY)
    assert same(other.flow, new.flow)
    assert not same(other.actor, new.actor)
    jax.tree.map(
        lambda t, old, q: np.testing.assert_allclose(t, 0.995 * old + 0.005 * q, rtol=1e-5, atol=1e-7),
        new.critic_target, state.critic_target, new.critic.params,
    )  # fmt: skip


def test_seeds_side_by_side_are_seeds_alone(setting):
    algorithm, state, update = setting
    t, keys = transitions(), jax.random.split(jax.random.key(5), 2)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    together, metrics = jax.jit(jax.vmap(algorithm.update, (0, None, 0)))(both, t, keys)
    alone, own = update(state, t, keys[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), together, alone)
    for name in own:
        np.testing.assert_allclose(metrics[name][1], own[name], rtol=1e-4, atol=1e-5)


def test_a_parents_flow_acts_until_its_time_is_over(setting):
    norm = Norm(*(np.asarray(x, np.float32) for x in ([0.3, -0.2], [2.0, 3.0], [0.1, 0.0], [0.5, 0.8])))
    cloning, algorithm = chain_bc.make(chain_bc.Config(net=NET, denoising=CONFIG.denoising), SPEC), setting[0]
    parent = jax.jit(cloning.init)(jax.random.key(3), Start(norm))
    parent = parent._replace(ema=jax.tree.map(lambda x: 0.9 * x, parent.ema))
    state, obs = jax.jit(algorithm.init)(KEY, Start(NORM, 1, parent)), transitions().obs
    act = jax.jit(algorithm.act)
    for ours in (act, jax.jit(algorithm.act_eval)):
        np.testing.assert_allclose(
            ours(state, obs, (), KEY).action, cloning.act(parent, obs, (), KEY).action, atol=1e-6
        )
    later = state._replace(step=jnp.int32(1))
    z = NETS.given.noises(KEY, B, 0)[0]
    mu = np.clip(NETS.mu.apply(later.actor.params, norm.state(obs.state), z), -1, 1)
    np.testing.assert_allclose(act(later, obs, (), KEY).action, np.clip(norm.raw_action(mu), -1, 1), atol=1e-6)
    assert same(algorithm.init(KEY, Start(NORM, 1, setting[1])), setting[1])


def test_it_can_act_and_learn_online(setting):
    online.trace(setting[0], Start(NORM, 4), (0, 1), SPEC, online.Plan(4, 5, 2, capacity=100, chunk=2))
    online.trace(fql.make(CONFIG, SPEC._replace(chunk=0)), Start(NORM), (0,), SPEC._replace(chunk=0), online.Plan())


def test_it_finds_what_to_do_in_data_of_random_actions():
    """In toy/match with chunks of two the best value is 2 / (1 - 0.5), also before the time limit."""
    arrays, env = match_arrays(400), build("match")
    episodes = dataset.from_lengths(*(arrays[k] for k in ("state", "action", "reward", "terminated", "length")))
    config = fql.Config(
        net=NET, denoising=CONFIG.denoising, hidden=(64, 64), critic=Network((64, 64), "gelu", False), batch_size=128,
        alpha=0.03, actor_lr=1e-3, critic_lr=2e-3, discount=0.5, tau=0.03,
    )  # fmt: skip
    algorithm = fql.make(config, env.spec._replace(chunk=2))
    data = batches.data(episodes, NORM, sampling.alias_table(algorithm.eligible(episodes)))
    run, _ = jax.jit(loop.epoch(algorithm, 1_500))(loop.begin(algorithm, Start(NORM), (0,)), data)
    state = np.random.default_rng(1).uniform(-0.9, 0.9, (200, 2)).astype(np.float32)
    obs = Observation(state, np.zeros((200, 0)), np.zeros(200), np.zeros(200, np.int32))
    learned = jax.tree.map(lambda x: x[0], run.algo)
    action = jax.jit(algorithm.act_eval)(learned, obs, (), KEY).action
    assert np.sqrt(np.square(action - env.target(state)[:, None]).mean()) < 0.1  # random actions: 0.7
    q = critics.of_chunks(config.critic).apply(learned.critic.params, state, action)
    assert float(q.mean()) == pytest.approx(2 / (1 - 0.5), rel=0.05)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"discount": -0.1}, "discount"),
        ({"tau": 1.5}, "tau"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"alpha": -1.0}, "alpha"),
        ({"flow_acts": -1}, "flow_acts"),
        ({"net": PolicyNet(family="diffusion")}, "family"),
    ],
)
def test_options_out_of_range_are_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        fql.make(dataclasses.replace(CONFIG, **change), SPEC)


def test_tasks_that_it_cannot_act_in_are_refused():
    assert "fql" in algos.names()
    for change, message in (({"goal_shape": (2,)}, "goals"), ({"obs_shape": (8, 8, 3)}, "images")):
        with pytest.raises(ConfigError, match=message):
            fql.make(CONFIG, SPEC._replace(**change))
