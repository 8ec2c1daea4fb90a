"""PPO: its loss against NumPy, the ratio of its first step, minibatches, statistics, learning on toys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from algos import ppo
from core import batches, loop, online
from core.config import ConfigError
from core.dataset import identity_norm
from core.evaluate import Evaluator
from core.rollout import RolloutState, rollout
from core.types import EnvSpec, Start

SPEC = EnvSpec("toy/match", (2,), 2, max_steps=10)
CONFIG = ppo.Config(hidden=(16, 16), batch_size=32, epochs=2)
T, B = 16, 4
NORM = identity_norm(2, 2)


@pytest.fixture(scope="module")
def setting():
    """(algorithm, state, rollout [T, B])."""
    algorithm, world = ppo.make(CONFIG, SPEC), envs.make("toy/match", B)
    state = algorithm.init(jax.random.key(0), Start(NORM, B))
    collect = jax.jit(rollout(algorithm.act, algorithm.init_carry, world, T))
    _, t = collect(state, RolloutState(*world.reset(0), ()), jax.random.key(1))
    return algorithm, state, t


def test_the_loss_equals_its_equations():
    rng = np.random.default_rng(0)
    nets = ppo.networks(CONFIG, SPEC)
    params = ppo.make(CONFIG, SPEC).init(jax.random.key(0), Start(NORM)).net.params
    params = {**params, "log_std": jnp.asarray([-0.5, 0.2])}
    obs, action = rng.normal(size=(2, 32, 2))
    old, advantage, ret = rng.normal(-2, 0.3, 32), rng.normal(2, 3, 32), rng.normal(size=32)
    batch = ppo.Batch(*(jnp.asarray(x, jnp.float32) for x in (obs, action, old, advantage, ret)))
    config = ppo.Config(hidden=(16, 16), entropy_weight=0.1)
    loss, metrics = ppo.loss(params, batch, nets, config)

    mean, std = np.asarray(nets.policy.apply(params["policy"], obs)), np.exp([-0.5, 0.2])
    log_prob = (-0.5 * ((action - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))).sum(-1)
    ratio, a = np.exp(log_prob - old), (advantage - advantage.mean()) / advantage.std()
    policy = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean()
    value = ((np.asarray(nets.critic.apply(params["value"], obs))[:, 0] - ret) ** 2).mean() / 2
    entropy = (np.log(std) + 0.5 * np.log(2 * np.pi * np.e)).sum()
    np.testing.assert_allclose(loss, policy + 0.5 * value - 0.1 * entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["policy/clipped"], (np.abs(ratio - 1) > 0.2).mean(), rtol=1e-5)


def test_the_ratio_is_one_before_the_first_step(setting):
    _, state, t = setting
    once = ppo.make(ppo.Config(hidden=(16, 16), batch_size=T * B, epochs=1), SPEC)
    _, metrics = once.update(state, t, jax.random.key(0))
    assert abs(metrics["policy/kl"]) < 1e-6
    assert metrics["policy/clipped"] == 0
    np.testing.assert_allclose(metrics["policy/loss"], 0, atol=1e-6)  # the mean of standardised advantages


def test_the_recorded_density_is_that_of_the_unclipped_action(setting):
    _, state, t = setting
    law = ppo.networks(CONFIG, SPEC).law(state.net.params, t.obs.state)
    np.testing.assert_allclose(t.extras["log_prob"], law.log_prob(t.extras["sampled"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(t.action, jnp.clip(t.extras["sampled"], -1, 1))
    assert jnp.abs(t.extras["sampled"]).max() > 1


def test_every_epoch_uses_every_transition_once():
    rows = batches.minibatches(jax.random.key(0), T * B, CONFIG.batch_size, CONFIG.epochs).reshape(CONFIG.epochs, -1)
    assert (np.sort(rows, axis=1) == np.arange(T * B)).all()
    assert not np.array_equal(rows[0], rows[1])


def test_statistics_take_in_the_rollout_after_the_update(setting):
    algorithm, state, t = setting
    new, _ = algorithm.update(state, t, jax.random.key(0))
    np.testing.assert_allclose(new.seen.mean, np.mean(t.obs.state, axis=(0, 1)), rtol=1e-4, atol=1e-5)
    assert new.seen.count == T * B
    plain = ppo.make(ppo.Config(hidden=(16, 16), batch_size=32, normalize_obs=False, normalize_reward=False), SPEC)
    new, _ = plain.update(state, t, jax.random.key(0))
    assert new.seen.count == 0
    assert new.rewards.seen.count == 0


def learn(task, steps, config, plan):
    world = envs.make(task, plan.num_envs)
    norm = identity_norm(world.spec.obs_shape[0], world.spec.action_dim)
    algorithm = ppo.make(config, world.spec)
    run = online.begin(algorithm, Start(norm, plan.num_envs), (0,), world, plan)
    *_, report = loop.train(online.compiled(algorithm, run, world, plan, norm, steps // 2), run, 0, steps)
    judge = Evaluator(algorithm.act_eval, algorithm.init_carry, envs.make(task, 20), 1, 1)
    return judge(report.run.algo, [7])


def test_it_learns_to_match():
    config = ppo.Config(hidden=(32, 32), batch_size=128, epochs=8, lr=1e-3, log_std=-0.7)
    assert learn("toy/match", 2 * 40 * 1024, config, online.Plan(32, 32)).ret.mean() > 9.9  # the best is 10


def test_it_learns_to_steer_a_point_mass():
    config = ppo.Config(hidden=(32, 32), batch_size=128, epochs=8, lr=3e-4, log_std=-0.7)
    judged = learn("toy/pointmass", 360 * 1024, config, online.Plan(32, 32))
    world = envs.make("toy/pointmass", 20)
    _, obs = world.reset(7)
    best = float(np.mean(world.env.optimal_return(obs.state)))
    assert judged.ret.mean() > best - 1.5, f"optimal {best}"  # a random policy: about -70


def test_rollouts_that_do_not_fill_minibatches_and_wrong_options_are_refused(setting):
    _, state, t = setting
    with pytest.raises(ConfigError, match="whole minibatches of 30"):
        ppo.make(ppo.Config(batch_size=30), SPEC).update(state, t, jax.random.key(0))
    with pytest.raises(ConfigError, match="lam"):
        ppo.make(ppo.Config(lam=1.5), SPEC)
