"""SAC: its losses against NumPy, its temperature, targets and learning on toys with known answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algos
import envs
from algos import sac
from core import loop, online
from core.config import ConfigError
from core.dataset import identity_norm
from core.evaluate import Evaluator
from core.networks import member
from core.types import EnvSpec, Start

SPEC = EnvSpec("toy/match", (2,), 2)
CONFIG = sac.Config(hidden=(8,), batch_size=5, discount=0.9, alpha=0.3, actor_lr=1e-2, critic_lr=1e-2, alpha_lr=1e-2)
B, A = 5, 2


@pytest.fixture(scope="module")
def setting():
    """(state, batch, next_noise, noise) of one update, random."""
    rng = np.random.default_rng(0)
    algorithm = sac.make(CONFIG, SPEC)
    state = algorithm.init(jax.random.key(0), Start(identity_norm(2, 2)))
    target = jax.tree.map(lambda x: x + 0.1, state.critic_target)  # apart from the critics
    obs, action, next_obs, next_noise, noise = (jnp.asarray(x) for x in rng.normal(size=(5, B, 2)).astype(np.float32))
    terminated = jnp.asarray([True, False, False, True, False])
    batch = sac.Batch(obs, jnp.tanh(action), jnp.arange(5.0), next_obs, terminated, jnp.full(B, 0.9))
    return state._replace(critic_target=target), batch, next_noise, noise


@pytest.fixture(scope="module")
def updated(setting):
    return sac.update_with(*setting, sac.networks(CONFIG, SPEC), CONFIG)


def mlp(params, x):
    """Dense, relu, Dense in float64."""
    layers = params["params"]
    one = np.maximum(x @ np.float64(layers["Dense_0"]["kernel"]) + layers["Dense_0"]["bias"], 0)
    return one @ np.float64(layers["Dense_1"]["kernel"]) + layers["Dense_1"]["bias"]


def drawn(params, obs, noise):
    """Action and log-density of the squashed Gaussian, from the change of variables."""
    mean, log_std = np.split(mlp(params, np.asarray(obs)), 2, axis=-1)
    std = np.exp(np.clip(log_std, -20, 2))
    u = mean + std * noise
    density = np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi)) / (1 - np.tanh(u) ** 2)
    return np.tanh(u), np.log(density).sum(-1)


def q_min(params, obs, action):
    both = np.concatenate([obs, action], -1)
    return np.stack([mlp(member(params, e), both)[:, 0] for e in range(2)])


def test_losses_equal_their_equations(setting, updated):
    state, batch, next_noise, noise = setting
    new, metrics = updated
    action, log_prob = drawn(state.actor.params, batch.next_obs, next_noise)
    value = q_min(state.critic_target, batch.next_obs, action).min(0) - 0.3 * log_prob
    y = batch.reward + 0.9 * (1 - np.asarray(batch.terminated)) * value
    np.testing.assert_allclose(metrics["critic/target"], y.mean(), rtol=1e-5)
    q = q_min(state.critic.params, batch.obs, batch.action)
    np.testing.assert_allclose(metrics["critic/loss"], ((q - np.asarray(y)) ** 2).mean(1).sum() / 2, rtol=1e-4)
    action, log_prob = drawn(state.actor.params, batch.obs, noise)  # the critics are the new ones
    wanted = (0.3 * log_prob - q_min(new.critic.params, batch.obs, action).min(0)).mean()
    np.testing.assert_allclose(metrics["actor/loss"], wanted, rtol=1e-4)
    np.testing.assert_allclose(metrics["actor/entropy"], -log_prob.mean(), rtol=1e-4)


def test_targets_move_by_tau(setting, updated):
    state, (new, _) = setting[0], updated
    jax.tree.map(
        lambda t, old, online: np.testing.assert_allclose(t, 0.995 * old + 0.005 * online, rtol=1e-5, atol=1e-7),
        new.critic_target, state.critic_target, new.critic.params,
    )  # fmt: skip


def test_the_temperature_rises_where_entropy_is_short(setting):
    state = setting[0]
    for entropy, sign in ((-5.0, 1), (5.0, -1)):
        gradient, _ = jax.grad(sac.alpha_loss, has_aux=True)(state.log_alpha.params, entropy, -2.0)
        np.testing.assert_allclose(gradient, 0.3 * (entropy + 2), rtol=1e-5)  # of exp(log alpha) (entropy - H)
        assert np.sign(-gradient) == sign


def test_the_policys_step_moves_neither_critics_nor_temperature(setting):
    still = dataclasses.replace(CONFIG, critic_lr=0.0, alpha_lr=0.0)
    new, _ = sac.update_with(*setting, sac.networks(still, SPEC), still)
    for name in ("critic", "log_alpha"):
        before, after = getattr(setting[0], name).params, getattr(new, name).params
        jax.tree.map(np.testing.assert_array_equal, before, after)
    kernels = [x.actor.params["params"]["Dense_0"]["kernel"] for x in (setting[0], new)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def learn(task, steps, config, plan, seed=0):
    """Train in a jitted toy -> (final state, what it is judged, the metrics of the last epoch)."""
    world = envs.make(task, plan.num_envs)
    norm = identity_norm(world.spec.obs_shape[0], world.spec.action_dim)
    algorithm = sac.make(config, world.spec)
    run = online.begin(algorithm, Start(norm, plan.num_envs), (seed,), world, plan)
    program = online.compiled(algorithm, run, world, plan, norm, steps // 2)
    *_, report = loop.train(program, run, 0, steps)
    judge = Evaluator(algorithm.act_eval, algorithm.init_carry, envs.make(task, 20), 1, 1)
    return report.run, judge(report.run.algo, [7]), report.metrics, algorithm


def test_it_learns_to_match_and_its_entropy_reaches_the_target():
    plan = online.Plan(16, updates=16, warmup=320, capacity=10_000)
    config = sac.Config(hidden=(32, 32), batch_size=64, actor_lr=3e-3, critic_lr=3e-3, alpha_lr=1e-2)
    _, judged, metrics, _ = learn("toy/match", 6_400, config, plan)
    assert judged.ret.mean() > 9.9  # the best is 10
    assert metrics["actor/entropy"] == pytest.approx(-2, abs=0.5)


def test_the_value_of_a_time_limit_is_bootstrapped():
    plan = online.Plan(16, updates=16, warmup=160, capacity=10_000)
    config = sac.Config(
        hidden=(32, 32), batch_size=64, critic_lr=3e-3, actor_lr=3e-3, alpha=1e-3, alpha_lr=0.0, discount=0.5, tau=0.05,
        n_step=3,
    )  # fmt: skip
    _, _, metrics, _ = learn("toy/match", 6_400, config, plan)
    assert metrics["critic/q"] == pytest.approx(2.0, abs=0.25)  # 1 / (1 - 0.5): the tenth step counts what follows


@pytest.mark.parametrize("change", [{"alpha": 0.0}, {"critics": 0}, {"n_step": 0}, {"discount": 1.1}, {"tau": 0.0}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        sac.make(sac.Config(**change), SPEC)


def test_goals_and_discrete_actions_are_refused():
    assert "sac" in algos.names()
    with pytest.raises(ConfigError, match="goals"):
        sac.make(CONFIG, SPEC._replace(goal_shape=(2,)))
    with pytest.raises(ConfigError, match="continuous"):
        sac.make(CONFIG, SPEC._replace(num_actions=3))
