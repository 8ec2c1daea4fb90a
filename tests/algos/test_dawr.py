"""DAWR: TD(lambda) over its buffer against a loop, weights, what its updates touch, parents, learning on a toy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algos
import envs
from algos import chain_bc, dawr
from core import chunk_policy, critics, loop, online, replay
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError
from core.critics import Network
from core.evaluate import Evaluator
from core.types import Start, Transition
from envs.registry import Options
from tests.algos import chunked
from tests.algos.chunked import KEY, NORM, SPEC, same, seen

NET = PolicyNet(family="diffusion", hidden=(16,), residual=False, time_dim=4, levels=3)
T, B, C = 2, 3, 6
CONFIG = dawr.Config(
    net=NET, critic=Network((8,), "relu", False), batch_size=6, discount=0.9, lam=0.8, td_factor=0.7, reward_scale=0.1,
    buffer=C, replay_ratio=4.0, critic_period=2,
)  # fmt: skip
V = critics.of_states(CONFIG.critic)
GIVEN = chunk_policy.policy(NET, SPEC)


def rollout(seed: int) -> Transition:
    """Random, [T, B]; some steps end the task, some are cut."""
    rng = np.random.default_rng(seed)
    action, ends = jnp.asarray(rng.uniform(-1, 1, (T, B, 2, 2)), jnp.float32), rng.integers(0, 4, (T, B))
    reward = jnp.asarray(rng.normal(size=(T, B)), jnp.float32)
    now, after = (seen(rng.normal(size=(T, B, 2))) for _ in range(2))
    return Transition(now, action, reward, after, jnp.asarray(ends == 0), jnp.asarray(ends == 1))


@pytest.fixture(scope="module")
def setting():
    """(algorithm, state before its first rollout, jitted update)."""
    algorithm = dawr.make(CONFIG, SPEC)
    return algorithm, jax.jit(lambda key: algorithm.init(key, Start(NORM, B)))(KEY), jax.jit(algorithm.update)


@pytest.mark.parametrize("rollouts", [2, 5])  # the buffer holds three
@pytest.mark.parametrize("time_limit", ["bootstrap", "terminate"])
def test_advantages_are_those_of_a_loop_over_the_steps_in_their_order(rollouts, time_limit):
    config, kept = dataclasses.replace(CONFIG, time_limit=time_limit), replay.empty(SPEC, B, 1, C * B)
    played = [rollout(seed) for seed in range(rollouts)]
    for t in played:
        kept = replay.add(kept, t)
    worth = lambda obs: 2 * obs.state[..., 0] - obs.state[..., 1]  # noqa: E731
    got = dawr.advantages(kept, worth(kept.transition.obs), worth(kept.transition.next_obs), config).reshape(C, B)

    steps = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), t) for t in played for i in range(T)]
    wanted = np.full((C, B), np.nan)
    for b in range(B):
        later = 0.0
        for number in range(len(steps) - 1, max(len(steps) - C, 0) - 1, -1):
            t = steps[number]
            over = t.terminated[b] or t.truncated[b]
            ends = over if time_limit == "terminate" else t.terminated[b]
            error = 0.1 * t.reward[b] + 0.9 * (1 - ends) * worth(t.next_obs)[b] - worth(t.obs)[b]
            later = 0.7 * error + 0.9 * 0.8 * (1 - over) * later
            wanted[number % C, b] = later
    there = ~np.isnan(wanted)
    assert there.all() == (rollouts > 2)
    np.testing.assert_allclose(np.asarray(got)[there], wanted[there], rtol=1e-4, atol=1e-5)


def test_weights_and_losses_equal_their_equations(setting):
    state, rng = setting[1], np.random.default_rng(0)
    advantage = rng.normal(3, 2, 12).astype(np.float32)
    standard = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-6)
    weight = dawr.weights(jnp.asarray(advantage), CONFIG)
    np.testing.assert_allclose(weight, np.minimum(np.exp(10 * standard), 100), rtol=1e-3)
    assert (np.asarray(weight) > 99.9).any()
    np.testing.assert_allclose(dawr.weights(jnp.ones(4), CONFIG), 1)  # no spread, no preference
    s, x1 = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((12, 2), (12, 2, 2)))
    fit = chain_bc.regression(state.actor.params, s, x1, KEY, GIVEN, CONFIG.fit)
    loss, metrics = dawr.actor_loss(state.actor.params, s, fit, weight, GIVEN)
    error = np.square(GIVEN.denoise(state.actor.params, s, fit.x, fit.t).out - fit.target).mean((1, 2))
    np.testing.assert_allclose(loss, (weight * error).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/bc"], error.mean(), rtol=1e-5)
    value, _ = dawr.critic_loss(state.critic.params, s, jnp.asarray(advantage), V)
    np.testing.assert_allclose(value, np.square(V.apply(state.critic.params, s) - advantage).mean(), rtol=1e-5)


def test_a_rollout_that_begins_anew_does_not_continue_what_is_kept(setting):
    """As after a resume in which the environments could not be put where they were; slot 1 goes on."""
    _, state, update = setting
    never, going = jnp.zeros((T, B), bool), jnp.asarray([0, 5, 0])
    first, second = (rollout(seed)._replace(terminated=never, truncated=never) for seed in (0, 1))
    kept = update(state, first, KEY)[0]
    step = jnp.arange(T)[:, None] + going
    kept = update(kept, second._replace(obs=second.obs._replace(step=step)), KEY)[0].kept
    np.testing.assert_array_equal(kept.transition.truncated.reshape(C, B)[T - 1], going == 0)
    assert kept.transition.truncated[: 2 * T * B].sum() == 2


def adam_steps(net) -> int:
    states = jax.tree.leaves(net.opt, is_leaf=lambda x: hasattr(x, "mu"))
    return int(next(x.count for x in states if hasattr(x, "mu")))


def test_an_update_keeps_the_rollout_and_steps_as_often_as_asked(setting):
    _, state, update = setting
    new, metrics = update(state, rollout(0), KEY)
    assert (adam_steps(new.critic), adam_steps(new.actor)) == (2, 4)  # 6 steps, each 4 times, in batches of 6
    assert int(new.kept.added[0]) == T
    np.testing.assert_array_equal(new.kept.transition.action[: T * B], rollout(0).action.reshape(T * B, 2, 2))
    assert all(np.isfinite(value) for value in metrics.values())
    # the critic's steps do not see the policy
    other, _ = update(state._replace(actor=jax.tree.map(lambda x: 2 * x, state.actor)), rollout(0), KEY)
    assert same(other.critic, new.critic)
    assert not same(other.actor.params, new.actor.params)


def test_what_is_not_there_yet_is_not_learned_from(setting):
    """Garbage in the part of the buffer that nothing has filled changes nothing."""
    _, state, update = setting
    junk = jax.tree.map(lambda x: x if x.dtype == bool else x + 7, state.kept.transition)
    spoiled = state._replace(kept=state.kept._replace(transition=junk))
    new, other = (update(s, rollout(0), KEY)[0] for s in (state, spoiled))
    assert same((new.actor, new.critic), (other.actor, other.critic))


def test_seeds_side_by_side_are_seeds_alone(setting):
    chunked.check_seeds(setting, rollout(0), rtol=1e-3)


def test_it_starts_from_cloning_and_from_itself(setting):
    (cloning, parent), (algorithm, state, update) = chunked.cloned(NET), setting
    begun = jax.jit(lambda key: algorithm.init(key, Start(NORM, B, parent)))(KEY)
    obs = jax.tree.map(lambda x: x[0], rollout(0).obs)
    ours, theirs = (jax.jit(a.act_eval)(s, obs, (), KEY).action for a, s in ((algorithm, begun), (cloning, parent)))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    last, _ = update(state, rollout(0), KEY)
    again = algorithm.init(KEY, Start(NORM, 5, last))  # among other environments: what was kept is not
    assert same((again.actor, again.critic, again.norm), (last.actor, last.critic, last.norm))
    assert same(again.kept, replay.empty(SPEC, 5, 1, 5 * C))


def test_the_critic_is_of_the_published_size():
    shapes = jax.eval_shape(lambda: critics.of_states(Network()).init(KEY, jnp.zeros((1, 11))))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 134_913  # hopper's, in ReinFlow's logs


def test_it_learns_to_match():
    """Chunks of two: the best return is 10, and values come near 2 / (1 - 0.5), also before the time limit."""
    config = dawr.Config(
        net=dataclasses.replace(NET, hidden=(64, 64), time_dim=8, levels=4), critic=Network((64, 64), "mish", False),
        batch_size=128, actor_lr=1e-3, critic_lr=3e-3, discount=0.5, buffer=40, replay_ratio=32.0, beta=2.0,
    )  # fmt: skip
    plan, options = online.Plan(32, 20, chunk=2), Options(chunk=2)
    world = envs.make("toy/match", plan.num_envs, options)
    algorithm = dawr.make(config, world.spec)
    run = online.begin(algorithm, Start(NORM, plan.num_envs), (0,), world, plan)
    program = online.compiled(algorithm, run, world, plan, NORM, 10 * plan.steps)
    *_, report = loop.train(program, run, 0, 20 * plan.steps)
    judge = Evaluator(algorithm.act_eval, algorithm.init_carry, envs.make("toy/match", 20, options), 1, 1)
    assert judge(report.run.algo, [7]).ret.mean() > 9.8
    assert report.metrics["critic/value"] == pytest.approx(4, abs=0.2)


def test_rollouts_that_do_not_fit_are_refused(setting):
    algorithm, state, _ = setting
    three = jax.tree.map(lambda x: jnp.concatenate([x, x])[:3], rollout(0))
    with pytest.raises(ConfigError, match="at least 2 updates"):
        dawr.make(dataclasses.replace(CONFIG, replay_ratio=1.0), SPEC).update(state, rollout(0), KEY)
    four = jax.tree.map(lambda x: jnp.concatenate([x, x])[:4], three)
    with pytest.raises(ConfigError, match="fill a buffer of 6"):
        algorithm.update(state, four, KEY)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"discount": 1.5}, "discount"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"lam": 1.5}, "lam"),
        ({"beta": 0.0}, "beta"),
        ({"critic_period": 0}, "critic_period"),
        ({"buffer": 0}, "buffer"),
        ({"net": PolicyNet(family="shortcut")}, "family"),
        ({"batch_size": 1}, "batch_size 1 must be at least 2"),
        ({"denoising": Denoising(sampler="dppm")}, "unknown sampler"),
        ({"time_limit": "ignore"}, "unknown time_limit"),
    ],
)
def test_options_out_of_range_are_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        dawr.make(dataclasses.replace(CONFIG, **change), SPEC)


def test_tasks_that_it_cannot_act_in_are_refused():
    assert "dawr" in algos.names()
    chunked.check_refused_tasks(dawr.make, CONFIG)
