"""The online loop: jitted equals host, epochs change nothing, warm-up, failed seeds, what an iteration is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from algos import bc, ppo, sac
from core import loop, online, replay
from core.config import ConfigError
from core.dataset import identity_norm
from core.types import EnvSpec, Start

NORM = identity_norm(2, 2)
SAC = (sac.Config(hidden=(16, 16), batch_size=32), online.Plan(4, 2, updates=3, warmup=40, capacity=96))
PPO = (ppo.Config(hidden=(16, 16), batch_size=16, epochs=2), online.Plan(4, 8))
CASES = {"sac": (sac, *SAC), "ppo": (ppo, *PPO)}


def numbers(tree):
    """Arrays of a state; keys as their data."""
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x), tree
    )


def trained(name, seeds=(0, 3), steps=128, epoch=64, host=False, change=lambda run: run):
    """The last report of a run, its state as numbers, and all reports' metrics."""
    module, config, plan = CASES[name]
    num = plan.num_envs * (len(seeds) if host else 1)
    world = envs.make("toy/match", num, envs.Options(host=host))
    algorithm = module.make(config, world.spec)
    run = change(online.begin(algorithm, Start(NORM, plan.num_envs), seeds, world, plan))
    build = online.hosted if host else online.compiled
    program = build(algorithm, run, world, plan, NORM, epoch)
    reports = list(loop.train(program, run, 0, steps))
    return reports[-1], numbers(reports[-1].run), [r.metrics for r in reports]


@pytest.fixture(scope="module", params=list(CASES))
def pair(request):
    return request.param, trained(request.param)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_a_host_environment_gives_the_same_run(pair):
    name, (_, jitted, metrics) = pair
    _, hosted, host_metrics = trained(name, host=True)
    at, host_at = jitted.rollout.at, hosted.rollout.at
    close(jitted._replace(rollout=jitted.rollout.tally), hosted._replace(rollout=hosted.rollout.tally), atol=2e-5)
    close(at.obs, host_at.obs, atol=1e-6)
    close(metrics, host_metrics, rtol=2e-3, atol=2e-4)


def test_epochs_of_any_length_give_the_same_numbers(pair):
    name, (_, state, _) = pair
    _, other, _ = trained(name, epoch=32)
    # bit for bit; but newer XLA rounds PPO's two programs differently
    close(state, other, rtol=0, atol={"sac": 0, "ppo": 1e-6}[name])


def test_a_vmapped_seed_equals_its_solo_run(pair):
    name, (_, state, _) = pair
    _, solo, _ = trained(name, seeds=(3,))
    close(jax.tree.map(lambda x: x[1], state), jax.tree.map(lambda x: x[0], solo), rtol=1e-3, atol=2e-5)


def test_the_clock_counts_environment_steps_and_episodes_are_reported(pair):
    _, (report, state, metrics) = pair
    assert state.step.tolist() == [128, 128]
    assert report.step == 128
    for of_epoch in metrics:
        np.testing.assert_array_equal(of_epoch["episode/length"], 10)  # of toy/match, always


def test_episodes_report_the_sum_of_their_rewards():
    """Ten steps of each environment are one episode, and all of them are in the replay."""
    _, state, metrics = trained("sac", steps=40, epoch=40)
    rewards = state.replay.transition.reward[:, :40].sum(axis=1) / 4
    np.testing.assert_allclose(metrics[0]["episode/return"], rewards, rtol=1e-5)


def test_the_replay_holds_what_was_played():
    _, state, _ = trained("sac")
    plan = SAC[1]
    assert (state.replay.added == 32).all()
    assert state.replay.transition.reward.shape == (2, plan.capacity)
    ring = jax.tree.map(lambda x: jnp.asarray(x[0]), state.replay)
    t = replay.transitions(ring, jnp.arange(plan.capacity))
    env = envs.make("toy/match", 1).env
    np.testing.assert_allclose(t.reward, env.reward(t.obs.state, t.action), atol=1e-5)
    assert (t.truncated == (t.next_obs.step == 10)).all()
    assert not t.terminated.any()


def test_nothing_is_learned_and_actions_are_uniform_while_warming_up():
    _, begun, _ = trained("sac", steps=8, epoch=8)
    _, warm, metrics = trained("sac", steps=40, epoch=8)
    _, after, _ = trained("sac", steps=48, epoch=8)
    close(begun.algo, warm.algo, rtol=0, atol=0)
    assert np.isnan(metrics[-1]["critic/loss"]).all()
    assert (
        np.abs(
            after.algo.actor.params["params"]["Dense_0"]["kernel"]
            - warm.algo.actor.params["params"]["Dense_0"]["kernel"]
        ).max()
        > 0
    )
    actions = warm.replay.transition.action[:, :40]
    assert np.abs(actions).max() <= 1
    assert np.abs(actions).mean() == pytest.approx(0.5, abs=0.06)  # uniform on [-1, 1]


@pytest.mark.parametrize("host", [False, True])
def test_a_non_finite_seed_is_frozen_and_the_others_go_on(host):
    def poison(run):
        """Its first step will be infinite; so far the parameters are sound."""
        begun.append(numbers(run.algo.net.params))
        opt = jax.tree.map(
            lambda x: x.at[0].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x, run.algo.net.opt
        )
        return run._replace(algo=run.algo._replace(net=run.algo.net._replace(opt=opt)))

    begun = []
    _, state, _ = trained("ppo", host=host, change=poison)
    close(*(jax.tree.map(lambda x: x[0], params) for params in (state.algo.net.params, begun[0])), rtol=0)
    assert state.step.tolist() == [0, 128]
    _, sound, _ = trained("ppo", host=host)
    assert state.failed.tolist() == [True, False]
    close(jax.tree.map(lambda x: x[1], state.algo), jax.tree.map(lambda x: x[1], sound.algo), rtol=1e-5, atol=1e-6)
    with pytest.raises(loop.Diverged, match="every seed turned non-finite"):
        trained("ppo", seeds=(0,), host=host, change=poison)


class Told:
    """A host vector that can or cannot be restored, and notes what it was told."""

    spec, num_envs = EnvSpec("mine/told", (2,), 2), 4

    def __init__(self, words=None):
        self.words, self.told = words, []

    def reset(self, seed, task=None):
        self.told.append(tuple(seed))
        return jax.tree.map(np.asarray, envs.make("toy/match", 4).reset(list(seed))[1])

    def snapshot(self):
        return self.words

    def restore(self, words):
        self.told.append(words)


def begun(world):
    plan = online.Plan(2)
    return online.begin(sac.make(SAC[0], world.spec), Start(NORM, 2), (0, 3), world, plan)


def test_a_snapshot_goes_into_the_checkpoint_and_back():
    words = np.arange(12, dtype=np.uint32).reshape(4, 3)
    world = Told(words)
    run = begun(world)
    assert run.rollout.at.env.shape == (2, 2, 3)
    assert online.enter(run, (0, 3), world) is run
    np.testing.assert_array_equal(world.told[-1], words)


def test_without_a_snapshot_new_episodes_begin():
    world = Told()
    run = begun(world)
    later = online.enter(run._replace(step=run.step + 5), (0, 3), world)
    assert len({*world.told[0], *world.told[1]}) == 8
    assert not np.array_equal(later.rollout.at.obs.state, run.rollout.at.obs.state)
    np.testing.assert_array_equal(later.rollout.at.obs.step, 0)


def test_n_step_windows_do_not_run_into_the_episodes_that_follow_a_resume():
    world = Told()
    run = begun(world)
    ring = jax.tree.map(lambda x: x[0], run.replay)
    nothing = jax.tree.map(lambda x: x[:2].reshape(1, 2, *x.shape[1:]), ring.transition)
    add = lambda ring: replay.add(ring, nothing._replace(reward=jnp.ones((1, 2))))  # noqa: E731
    run = run._replace(replay=jax.tree.map(lambda x: jnp.stack([x, x]), add(ring)))
    later = online.enter(run, (0, 3), world)
    ring = add(jax.tree.map(lambda x: x[1], later.replay))
    t = replay.transitions(ring, jnp.arange(4), steps=2, discount=0.5)
    np.testing.assert_allclose(t.reward, 1)  # the first stops where the resume was, the second is the newest
    assert t.truncated.tolist() == [True, True, False, False]


def test_plans_that_make_no_sense_are_refused():
    world = envs.make("toy/match", 4)
    on_policy, off_policy = ppo.make(PPO[0], world.spec), sac.make(SAC[0], world.spec)
    for algorithm, plan, said in [
        (bc.make(bc.Config(), world.spec), online.Plan(4), "does not explore"),
        (off_policy, online.Plan(4, updates=0), "needs environments, steps and updates"),
        (on_policy, online.Plan(4, warmup=10), "on-policy"),
        (off_policy, online.Plan(4, 2), "whole number of iterations"),
    ]:
        with pytest.raises(ConfigError, match=said):
            online.epoch(algorithm, world, plan, NORM, 12)
