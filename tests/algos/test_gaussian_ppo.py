"""Gaussian PPO: its density, its start, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import envs
from algos import chain_bc, chain_ppo, gaussian_ppo
from core import dataset, loop, online
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError
from core.critics import Network
from core.evaluate import Evaluator
from core.types import Start
from envs.registry import Options

NET = PolicyNet(family="gaussian", hidden=(16, 16, 16))
SMALL = {"net": NET, "critic": Network((16, 16, 16)), "batch_size": 128}


@pytest.fixture(scope="module")
def env():
    return envs.make("toy/pointmass", 16, Options(chunk=2, max_steps=30))


@pytest.fixture(scope="module")
def parent(env):
    """An untrained policy that was given the actions' range [-0.3, 0.3]."""
    norm = dataset.identity_norm(4, 2)._replace(action_scale=np.full(2, 0.3, np.float32))
    bc = chain_bc.make(chain_bc.Config(net=NET), env.spec)
    return bc, loop.begin(bc, Start(norm), (0,)).algo


def begun(env, parent, **options):
    tune = gaussian_ppo.make(gaussian_ppo.Config(**{**SMALL, **options}), env.spec)
    plan = online.Plan(16, 16, chunk=2)
    return tune, plan, online.begin(tune, Start(dataset.identity_norm(4, 2), 16, parent[1]), (0,), env, plan)


def observations(env, size=7):
    obs = env.reset(3)[1]
    return jax.tree.map(lambda x: jnp.asarray(x[:size]), obs)


def test_it_starts_as_what_was_cloned(env, parent):
    bc, cloned = parent
    big = jax.tree.map(lambda x: 30 * x, cloned.ema)  # means far outside what the chain ends at
    cloned = cloned._replace(ema=big)
    tune, _, run = begun(env, (bc, cloned))
    obs, one = observations(env), lambda tree: jax.tree.map(lambda x: x[0], tree)
    ours, theirs = (a.act_eval(one(s), obs, (), jax.random.key(0)).action for a, s in ((tune, run.algo), (bc, cloned)))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.abs(ours).max() == pytest.approx(0.3)


def test_the_recorded_density_is_that_of_the_sample(env, parent):
    tune, _, run = begun(env, parent, std=0.15)
    state, obs = jax.tree.map(lambda x: x[0], run.algo), observations(env)
    out = tune.act(state, obs, (), jax.random.key(1))
    sampled = np.asarray(out.extras.chain[:, 1], np.float64)
    mean = np.asarray(tune.act_eval(state, obs, (), jax.random.key(0)).action) / 0.3  # an untrained mean is not clipped
    expected = stats.norm(mean, 0.15).logpdf(sampled).sum(axis=(1, 2))
    np.testing.assert_allclose(out.extras.log_prob[:, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(out.action, np.clip(0.3 * sampled, -1, 1), atol=1e-6)


def test_what_acting_records_is_what_the_likelihood_says(env, parent, monkeypatch):
    """The ratio is exactly 1 before the first update, whatever the spread."""
    *_, run = begun(env, parent)
    with monkeypatch.context() as patch:
        patch.setattr(chain_ppo, "make", lambda cfg, spec, given, actor: actor)
        actor = gaussian_ppo.make(gaussian_ppo.Config(**SMALL), env.spec)
    state, obs = jax.tree.map(lambda x: x[0], run.algo), observations(env)
    params = {**state.actor.params, "log_std": jnp.log(jnp.linspace(0.005, 0.3, 4)).reshape(2, 2)}  # beyond its bounds
    state = state._replace(actor=state.actor._replace(params=params))

    @jax.jit
    def both(state):
        _, record = actor.play(state, obs, jax.random.key(1))
        return record, actor.judge(state.actor.params, state, obs, record.chain, jnp.zeros(7, jnp.int32))

    record, judged = both(state)
    np.testing.assert_allclose(judged.log_prob, record.log_prob[:, 0], atol=1e-5)
    assert np.ptp(record.log_prob) > 0.1


def test_it_learns(env, parent):
    tune, plan, run = begun(env, parent, epochs=5, clip=0.2, actor_lr=3e-3, std_min=0.08)
    judge = Evaluator(tune.act_eval, tune.init_carry, env, 1, episodes=2)
    before = judge(run.algo, [5]).ret.mean()
    program = online.compiled(tune, run, env, plan, dataset.identity_norm(4, 2), plan.steps * 20)
    for report in loop.train(program, run, 0, plan.steps * 60):
        np.testing.assert_allclose(report.metrics["policy/first_ratio"], 1, atol=1e-4)
    after = judge(report.run.algo, [5]).ret.mean()
    assert before < -2
    assert after > before + 0.2  # with at most 0.3 of the task's acceleration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.3}, "std_max"), ({"net": PolicyNet()}, "gaussian policies"), ({"bc_weight": 1.0}, "regulariser"),
        ({"denoising": Denoising(steps=4)}, "one step"), ({"augment": 2}, "images"), ({"lam": 1.5}, "lam"),
    ],
)  # fmt: skip
def test_refusals(env, options, message):
    with pytest.raises(ConfigError, match=message):
        gaussian_ppo.make(gaussian_ppo.Config(**{**SMALL, **options}), env.spec)
