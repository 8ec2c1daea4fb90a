"""DQL: its losses against NumPy, where gradients go, parents, learning on a toy with a known answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algos
from algos import chain_bc, dql
from core import batches, chunk_policy, critics, online, sampling
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError
from core.critics import Network
from core.types import Start
from envs.toys import build
from tests.algos import chunked
from tests.algos.chunked import KEY, NORM, SPEC, B, same, seen, transitions

NET = PolicyNet(family="diffusion", hidden=(16,), residual=False, time_dim=4, levels=3)
CONFIG = dql.Config(
    net=NET, critic=Network((8,), "relu", False), discount=0.9, eta=0.7, reward_scale=0.1, actor_start=1, batch_size=6
)
GIVEN, Q = chunk_policy.policy(NET, SPEC), critics.of_chunks(CONFIG.critic)
PLAYED = jax.jit(lambda params, state, noise: dql.played(params, state, noise, GIVEN, CONFIG))
OUT = jax.jit(lambda params, state, x, t: GIVEN.denoise(params, state, x, t).out)


@pytest.fixture(scope="module")
def setting():
    """(algorithm, state with targets apart from the critics and the actor's turn come, jitted update)."""
    return chunked.after_one_step(dql.make(CONFIG, SPEC))


def q_by_hand(params, state, action) -> np.ndarray:
    """Dense, relu, Dense in float64: f64[E, B]."""
    x = np.concatenate([np.float64(state), np.float64(action).reshape(len(action), -1)], axis=-1)
    one, two = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = np.maximum(np.einsum("bi,eij->ebj", x, one["kernel"]) + np.asarray(one["bias"])[:, None], 0)
    return (np.einsum("ebj,ejk->ebk", hidden, two["kernel"]) + np.asarray(two["bias"])[:, None])[..., 0]


def test_the_critics_equal_their_equations(setting):
    state, t, drawn = setting[1], transitions(), GIVEN.noises(jax.random.key(1), B, 3)
    chunk = PLAYED(state.actor.params, t.next_obs.state, drawn)
    value = q_by_hand(state.critic_target, t.next_obs.state, chunk).min(0)
    bootstrap = jax.jit(lambda *args: dql.bootstrap(*args, GIVEN, Q, CONFIG))
    for time_limit, over in (("bootstrap", t.terminated), ("terminate", t.terminated | t.truncated)):
        batch = critics.to_batch(t, GIVEN, {}, NORM, 0.1, time_limit)
        y = 0.1 * np.asarray(t.reward) + 0.9 * (1 - np.asarray(over)) * value
        target = bootstrap(state.critic_target, state.actor.params, batch, drawn)
        np.testing.assert_allclose(target, y, rtol=1e-5)
        loss, _ = critics.q_loss(state.critic.params, target, batch, Q)
        wanted = ((q_by_hand(state.critic.params, t.obs.state, t.action) - y) ** 2).mean(1).sum()
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_the_improvement_is_scaled_by_the_other_critic():
    q = jnp.asarray([[1.0, -3.0, 5.0], [2.0, 2.0, -8.0]])
    np.testing.assert_allclose(dql.improvement(q, True), -1 / 4)  # one's mean over the other's mean size
    np.testing.assert_allclose(dql.improvement(q, False), 4 / 3 / 3, rtol=1e-6)
    slope = jax.grad(dql.improvement)(q, True)
    np.testing.assert_allclose(slope, [[-1 / 12] * 3, [0.0] * 3], rtol=1e-6)  # the scale takes no gradient


def test_the_actors_loss_and_its_gradient_through_the_whole_chain(setting):
    state, t = setting[1], transitions()
    params, noise = state.actor.params, GIVEN.noises(jax.random.key(3), B, 3)
    fit = chain_bc.regression(params, t.obs.state, t.action, jax.random.key(2), GIVEN, CONFIG.fit)
    draws = dql.Draws(noise, noise, jnp.bool_(True), fit)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return dql.actor_loss(params, state.critic.params, state.norm, t.obs, draws, GIVEN, Q, CONFIG)[0]

    value, slope = loss(params)
    q = q_by_hand(state.critic.params, t.obs.state, PLAYED(params, t.obs.state, noise))
    bc = np.square(OUT(params, t.obs.state, fit.x, fit.t) - fit.target).mean()
    np.testing.assert_allclose(value, bc - 0.7 * q[0].mean() / np.abs(q[1]).mean(), rtol=1e-5)

    def moved(by: float) -> float:
        """The same, the scale held, for parameters `by` along the gradient; in float64 what can be."""
        there = jax.tree.map(lambda p, g: p + by * g / length, params, slope)
        chunk = PLAYED(there, t.obs.state, noise)
        error = np.float64(OUT(there, t.obs.state, fit.x, fit.t)) - fit.target
        return np.square(error).mean() - 0.7 * q_by_hand(state.critic.params, t.obs.state, chunk)[0].mean() / scale

    scale, length = np.abs(q[1]).mean(), np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(slope)))
    np.testing.assert_allclose((moved(2e-4) - moved(-2e-4)) / 4e-4, length, rtol=0.02)


def test_critics_and_actor_move_only_themselves(setting):
    """The actor waits at step 0 and learns at step 1: the critics notice nothing, and the other way round."""
    _, state, update = setting
    waiting, quiet = update(state._replace(step=jnp.int32(0)), transitions(), KEY)
    learning, metrics = update(state, transitions(), KEY)
    assert same(waiting.actor, state.actor)
    assert not same(learning.actor.params, state.actor.params)
    assert same((waiting.critic, waiting.critic_target), (learning.critic, learning.critic_target))
    assert not same(learning.critic.params, state.critic.params)
    assert np.isnan(quiet["actor/loss"])
    assert np.isfinite(metrics["actor/loss"])
    chunked.check_targets(state, learning, 0.005)


def test_seeds_side_by_side_are_seeds_alone(setting):
    chunked.check_seeds(setting, transitions())


def test_it_starts_from_cloning_and_from_itself(setting):
    algorithm, (cloning, parent) = setting[0], chunked.cloned(NET)
    state, obs = jax.jit(algorithm.init)(KEY, Start(NORM, 1, parent)), transitions().obs
    ours, theirs = (jax.jit(a.act_eval)(s, obs, (), KEY).action for a, s in ((algorithm, state), (cloning, parent)))
    np.testing.assert_array_equal(ours, theirs)
    assert same(algorithm.init(KEY, Start(NORM, 1, setting[1])), setting[1])


def test_it_can_act_and_learn_online(setting):
    online.trace(setting[0], Start(NORM, 4), (0, 1), SPEC, online.Plan(4, 5, 2, capacity=100, chunk=2))
    online.trace(dql.make(CONFIG, SPEC._replace(chunk=0)), Start(NORM), (0,), SPEC._replace(chunk=0), online.Plan())
    out = jax.jit(setting[0].act)(setting[1], transitions().obs, (), KEY).action
    assert out.shape == (B, 2, 2)
    assert np.abs(out).max() <= 1


def test_it_finds_what_to_do_in_data_of_random_actions():
    """In toy/match with chunks of two the best value is 2 / (1 - 0.5), also before the time limit; noise costs some."""
    episodes, env = chunked.match_episodes(400), build("match")
    config = dql.Config(
        net=dataclasses.replace(NET, hidden=(64, 64)), critic=Network((64, 64), "mish", False), batch_size=128,
        actor_lr=2e-3, critic_lr=2e-3, discount=0.5, tau=0.03, eta=20.0,
    )  # fmt: skip
    algorithm = dql.make(config, env.spec._replace(chunk=2))
    whole = algorithm.eligible(episodes)
    assert whole.mean() == 0.9  # the last of ten steps begins no chunk of two
    data = batches.data(episodes, NORM, sampling.alias_table(whole))
    learned, metrics = chunked.trained(algorithm, data, 1_000)
    state = np.random.default_rng(1).uniform(-0.9, 0.9, (200, 2)).astype(np.float32)
    action = jax.jit(algorithm.act_eval)(learned, seen(state), (), KEY).action
    assert np.sqrt(np.square(action - env.target(state)[:, None]).mean()) < 0.1  # random actions: 0.7
    best = 2 * (1 - 2 * 0.1**2) / (1 - 0.5)  # with a std of 0.1 in two dimensions
    q = critics.of_chunks(config.critic).apply(learned.critic.params, state, action)
    assert float(q.mean()) == pytest.approx(best, rel=0.05)
    assert metrics["actor/loss"] < 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"discount": 1.5}, "discount"),
        ({"tau": 0.0}, "tau"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"eta": -1.0}, "eta"),
        ({"noise_clip": 0.0}, "noise_clip"),
        ({"net": PolicyNet(family="shortcut")}, "family"),
        ({"denoising": Denoising(steps=2)}, "ddim"),
        ({"denoising": Denoising(sampler="dppm")}, "unknown sampler"),
        ({"time_limit": "ignore"}, "unknown time_limit"),
    ],
)
def test_options_out_of_range_are_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        dql.make(dataclasses.replace(CONFIG, **change), SPEC)


def test_tasks_that_it_cannot_act_in_are_refused():
    assert "dql" in algos.names()
    chunked.check_refused_tasks(dql.make, CONFIG)
