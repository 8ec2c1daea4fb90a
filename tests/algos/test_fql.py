"""FQL: its losses against NumPy, where gradients go, parents, learning on a toy with a known answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algos
from algos import chain_bc, fql
from core import batches, critics, online, optim, sampling
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError
from core.critics import Network
from core.rng import streams
from core.types import Start, Transition
from envs.toys import build
from tests.algos import chunked
from tests.algos.chunked import KEY, NORM, SPEC, UNEVEN, B, close, same, seen, transitions

NET = PolicyNet(hidden=(16,), residual=False, time_dim=4, denoised_clip=0.0)
CONFIG = fql.Config(
    net=NET, denoising=Denoising(steps=3), hidden=(16,), critic=Network((8,), "gelu", False, "before"), discount=0.9,
    reward_scale=0.1, flow_acts=1, batch_size=6,
)  # fmt: skip
NETS = fql.networks(CONFIG, SPEC)


@pytest.fixture(scope="module")
def setting():
    """(algorithm, state with targets apart from the critics and a mu that leaves [-1, 1], jitted update)."""
    algorithm, state, update = chunked.after_one_step(fql.make(CONFIG, SPEC))
    actor = state.actor._replace(params=jax.tree.map(lambda x: 4 * x, state.actor.params))
    return algorithm, state._replace(actor=actor), update


def batch_of(t: Transition, time_limit: str = "bootstrap") -> critics.Batch:
    return critics.to_batch(t, NETS.given, {}, NORM, 0.1, time_limit)


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

    close(slope, jax.grad(held)(params), rtol=1e-4, atol=1e-6)


def test_the_flow_only_imitates_and_nothing_moves_what_is_not_its_own(setting):
    _, state, update = setting
    t = transitions()
    new, metrics = update(state, t, KEY)
    fit = chain_bc.regression(state.flow.params, t.obs.state, t.action, streams(KEY, "fit").fit, NETS.given, CONFIG.fit)
    alone, cloning = optim.step(optim.adam(3e-4), chain_bc.loss, state.flow, NORM, t.obs, fit, NETS.given)
    close(new.flow.params, alone.params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["flow/loss"], cloning["loss"], rtol=1e-5)
    # another flow changes what is distilled, not the critics; other critics change mu, not the flow
    other, _ = update(state._replace(flow=jax.tree.map(lambda x: x * 2, state.flow)), t, KEY)
    assert same((other.critic, other.critic_target), (new.critic, new.critic_target))
    assert not same(other.actor, new.actor)
    other, _ = update(state._replace(critic=jax.tree.map(lambda x: x * 2, state.critic)), t, KEY)
    assert same(other.flow, new.flow)
    assert not same(other.actor, new.actor)
    chunked.check_targets(state, new, 0.005)


def test_seeds_side_by_side_are_seeds_alone(setting):
    chunked.check_seeds(setting, transitions())


def test_a_parents_flow_acts_until_its_time_is_over(setting):
    algorithm, (cloning, parent) = setting[0], chunked.cloned(NET, denoising=CONFIG.denoising)
    state, obs = jax.jit(algorithm.init)(KEY, Start(NORM, 1, parent)), transitions().obs
    act = jax.jit(algorithm.act)
    for ours in (act, jax.jit(algorithm.act_eval)):
        np.testing.assert_allclose(
            ours(state, obs, (), KEY).action, cloning.act(parent, obs, (), KEY).action, atol=1e-6
        )
    later = state._replace(step=jnp.int32(1))
    z = NETS.given.noises(KEY, B, 0)[0]
    mu = np.clip(NETS.mu.apply(later.actor.params, UNEVEN.state(obs.state), z), -1, 1)
    np.testing.assert_allclose(act(later, obs, (), KEY).action, np.clip(UNEVEN.raw_action(mu), -1, 1), atol=1e-6)
    assert same(algorithm.init(KEY, Start(NORM, 1, setting[1])), setting[1])


def test_it_can_act_and_learn_online(setting):
    online.trace(setting[0], Start(NORM, 4), (0, 1), SPEC, online.Plan(4, 5, 2, capacity=100, chunk=2))
    online.trace(fql.make(CONFIG, SPEC._replace(chunk=0)), Start(NORM), (0,), SPEC._replace(chunk=0), online.Plan())


def test_it_finds_what_to_do_in_data_of_random_actions():
    """In toy/match with chunks of two the best value is 2 / (1 - 0.5), also before the time limit."""
    episodes, env = chunked.match_episodes(400), build("match")
    config = fql.Config(
        net=NET, denoising=CONFIG.denoising, hidden=(64, 64), critic=Network((64, 64), "gelu", False), batch_size=128,
        alpha=0.03, actor_lr=1e-3, critic_lr=2e-3, discount=0.5, tau=0.03,
    )  # fmt: skip
    algorithm = fql.make(config, env.spec._replace(chunk=2))
    data = batches.data(episodes, NORM, sampling.alias_table(algorithm.eligible(episodes)))
    learned, _ = chunked.trained(algorithm, data, 1_500)
    state = np.random.default_rng(1).uniform(-0.9, 0.9, (200, 2)).astype(np.float32)
    action = jax.jit(algorithm.act_eval)(learned, seen(state), (), KEY).action
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
        ({"denoising": Denoising(sampler="dppm")}, "unknown sampler"),
        ({"time_limit": "ignore"}, "unknown time_limit"),
    ],
)
def test_options_out_of_range_are_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        fql.make(dataclasses.replace(CONFIG, **change), SPEC)


def test_tasks_that_it_cannot_act_in_are_refused():
    assert "fql" in algos.names()
    chunked.check_refused_tasks(fql.make, CONFIG)
