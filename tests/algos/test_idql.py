"""IDQL: its losses against NumPy, what it chooses from its proposals, parents, a toy with known expectiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algos
from algos import idql
from core import batches, chunk_policy, critics, online
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError
from core.critics import Network
from core.types import Start
from envs.toys import build
from tests.algos import chunked
from tests.algos.chunked import KEY, NORM, SPEC, B, same, seen, transitions

NET = PolicyNet(family="diffusion", hidden=(16,), residual=False, time_dim=4, levels=3)
CONFIG = idql.Config(
    net=NET, critic=Network((8,), "relu", False), discount=0.9, reward_scale=0.1, actor_start=1, batch_size=6,
    samples=4, explore_samples=3,
)  # fmt: skip
NETS = idql.Networks(critics.of_chunks(CONFIG.critic), critics.of_states(CONFIG.critic))
GIVEN = chunk_policy.policy(NET, SPEC)


@pytest.fixture(scope="module")
def setting():
    """(algorithm, state with targets apart from the critics and the actor's turn come, jitted update)."""
    return chunked.after_one_step(idql.make(CONFIG, SPEC))


def test_losses_equal_their_equations(setting):
    _, state, update = setting
    t = transitions()
    new, metrics = update(state, t, KEY)
    q = np.asarray(NETS.q.apply(state.critic_target, t.obs.state, t.action))
    errors = np.minimum(q[0], q[1]) - np.asarray(NETS.v.apply(state.value.params, t.obs.state))
    assert 0 < (errors > 0).sum() < B
    wanted = np.mean([(0.8 if u > 0 else 0.2) * u**2 for u in errors])
    np.testing.assert_allclose(metrics["value/loss"], wanted, rtol=1e-5)
    following = np.asarray(NETS.v.apply(new.value.params, t.next_obs.state))  # by the value just updated
    y = 0.1 * np.asarray(t.reward) + 0.9 * (1 - np.asarray(t.terminated)) * following
    np.testing.assert_allclose(metrics["critic/target"], y.mean(), rtol=1e-5)
    error = np.asarray(NETS.q.apply(state.critic.params, t.obs.state, t.action)) - y
    np.testing.assert_allclose(metrics["critic/loss"], (error[0] ** 2).mean() + (error[1] ** 2).mean(), rtol=1e-5)
    chunked.check_targets(state, new, 0.001)


def test_values_and_actor_move_only_themselves(setting):
    """The actor waits at step 0 and learns at step 1: the values notice nothing, nor does it notice other values."""
    _, state, update = setting
    waiting, quiet = update(state._replace(step=jnp.int32(0)), transitions(), KEY)
    learning, metrics = update(state, transitions(), KEY)
    assert same(waiting.actor, state.actor)
    assert not same(learning.actor.params, state.actor.params)
    for name in ("critic", "critic_target", "value"):
        assert same(getattr(waiting, name), getattr(learning, name))
        assert not same(getattr(state, name), getattr(learning, name))
    assert np.isnan(quiet["actor/bc"])
    assert np.isfinite(metrics["actor/bc"])
    changed = state._replace(critic_target=jax.tree.map(lambda x: 2 * x, state.critic_target))
    other, _ = update(changed, transitions(), KEY)
    assert same(other.actor, learning.actor)
    assert not same(other.value, learning.value)


def test_lots_favour_what_is_better_than_the_value():
    score, value = jnp.asarray([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]), jnp.asarray([1.5, 1.0])
    chance = jax.nn.softmax(idql.log_weights(score, value, 0.7), axis=1)
    np.testing.assert_allclose(chance, [[0.3 / 1.7, 0.7 / 1.7, 0.7 / 1.7], [1 / 3] * 3], rtol=1e-5)


def test_judged_it_takes_the_best_proposal(setting):
    algorithm, state, _ = setting
    obs = transitions().obs
    proposals = GIVEN.sample(state.actor.params, jnp.repeat(obs.state, 4, axis=0), KEY, CONFIG.denoising).reshape(
        B, 4, 2, 2
    )
    each = [NETS.q.apply(state.critic_target, obs.state, proposals[:, n]).min(0) for n in range(4)]
    best = np.argmax(np.stack(each), axis=0)
    assert len(set(best.tolist())) > 1
    np.testing.assert_allclose(
        idql.scores(state.critic_target, obs.state, proposals, NETS), np.stack(each, 1), rtol=1e-5
    )
    action = jax.jit(algorithm.act_eval)(state, obs, (), KEY).action
    np.testing.assert_allclose(action, np.asarray(proposals)[np.arange(B), best], rtol=1e-4, atol=1e-5)
    explored = jax.jit(algorithm.act)(state, obs, (), KEY).action
    assert explored.shape == (B, 2, 2)
    assert np.abs(explored).max() <= 1


def test_seeds_side_by_side_are_seeds_alone(setting):
    chunked.check_seeds(setting, transitions())


def test_it_starts_from_cloning_and_from_itself(setting):
    """With one proposal it acts as the policy that it starts from."""
    algorithm, (cloning, parent) = idql.make(dataclasses.replace(CONFIG, samples=1), SPEC), chunked.cloned(NET)
    state, obs = jax.jit(algorithm.init)(KEY, Start(NORM, 1, parent)), transitions().obs
    ours, theirs = (jax.jit(a.act_eval)(s, obs, (), KEY).action for a, s in ((algorithm, state), (cloning, parent)))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert same(algorithm.init(KEY, Start(NORM, 1, setting[1])), setting[1])


def test_it_can_act_and_learn_online(setting):
    online.trace(setting[0], Start(NORM, 4), (0, 1), SPEC, online.Plan(4, 5, 2, capacity=100, chunk=2))


def expectile(x: np.ndarray, kappa: float) -> np.ndarray:
    """Of the last axis, by its fixed point: the mean with weights kappa above it and 1 - kappa below."""
    value = x.mean(-1)
    for _ in range(50):
        weight = np.where(x > value[..., None], kappa, 1 - kappa)
        value = (weight * x).sum(-1) / weight.sum(-1)
    return value


def test_values_are_expectiles_and_the_best_of_twenty_is_taken():
    """Without a discount, on uniformly random actions: V(s) is an expectile of the reward, known by sampling."""
    episodes, env, rng = chunked.match_episodes(600), build("match"), np.random.default_rng(1)
    config = idql.Config(
        net=dataclasses.replace(NET, hidden=(64, 64), time_dim=8, levels=5), critic=Network((64, 64), "mish", False),
        batch_size=128, actor_lr=2e-3, critic_lr=2e-3, discount=0.0, tau=0.05,
    )  # fmt: skip
    algorithm = idql.make(config, env.spec)
    assert algorithm.eligible(episodes).all()  # no chunks
    learned, _ = chunked.trained(algorithm, batches.data(episodes, NORM), 2_000)
    state = rng.uniform(-0.9, 0.9, (200, 2)).astype(np.float32)

    def reward(action):  # f[200, n, 2]
        return 1 - np.square(np.asarray(action) - np.asarray(env.target(state))[:, None]).sum(-1)

    value = critics.of_states(config.critic).apply(learned.value.params, state)
    wanted = expectile(reward(rng.uniform(-1, 1, (200, 4000, 2))), 0.8)
    assert np.sqrt(np.square(value - wanted).mean()) < 0.1
    action = jax.jit(algorithm.act_eval)(learned, seen(state), (), KEY).action
    best = reward(rng.uniform(-1, 1, (200, 20, 2))).max(1).mean()
    assert reward(action[:, None]).mean() == pytest.approx(best, abs=0.05)  # a random one: about 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"discount": 1.5}, "discount"),
        ({"reward_scale": -1.0}, "reward_scale"),
        ({"expectile": 1.0}, "expectile"),
        ({"explore_weight": 1.0}, "explore_weight"),
        ({"samples": 0}, "samples"),
        ({"noise_floor": -1.0}, "noise_floor"),
        ({"net": PolicyNet(family="meanflow")}, "family"),
        ({"denoising": Denoising(sampler="dppm")}, "unknown sampler"),
        ({"time_limit": "ignore"}, "unknown time_limit"),
    ],
)
def test_options_out_of_range_are_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        idql.make(dataclasses.replace(CONFIG, **change), SPEC)


def test_tasks_that_it_cannot_act_in_are_refused():
    assert "idql" in algos.names()
    chunked.check_refused_tasks(idql.make, CONFIG)
