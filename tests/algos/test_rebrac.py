"""ReBRAC: its losses against NumPy, the data's next action, phase and lag, TD3's limit, toys with known answers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import rebrac, td3_bc
from core import batches, dataset, loop, optim
from core.config import ConfigError
from core.networks import member
from core.types import EnvSpec, Observation, Start
from envs.toys import build
from tests.algos import contracts
from tests.algos.problems import NORM, SPEC, adam_steps, match_problem, random_batch, same
from tests.conftest import match_arrays

CFG = rebrac.Config(batch_size=16, hidden=(8, 8))
B, A = 16, 2


def begin(cfg=CFG, seed=0):
    """(algorithm, first state), the targets apart from what they follow."""
    algorithm = rebrac.make(cfg, SPEC)
    state = jax.jit(algorithm.init)(jax.random.key(seed), Start(NORM))
    apart = {name: jax.tree.map(lambda x: 1.1 * x + 0.05, getattr(state, name)) for name in TARGETS}
    return algorithm, state._replace(**apart)


TARGETS = ("actor_target", "critic_target")
EXTRAS = {
    "next_action": jnp.asarray(np.random.default_rng(7).uniform(-1, 1, (B, A)), jnp.float32),
    "known": jnp.arange(B) % 3 > 0,
}


def given(seed=0):
    """A random batch with next actions, two of three known."""
    return rebrac.to_batch(NORM, random_batch(seed)._replace(extras=EXTRAS))


def noise(seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, A)), jnp.float32)


def call(cfg, state, batch):
    return jax.jit(lambda s, b, n: rebrac.update_with(s, b, n, rebrac.networks(cfg, SPEC), cfg))(state, batch, noise())


def mlp(params, x, final=lambda x: x):
    """Dense, relu (, LayerNorm) twice, Dense in float64."""
    layers = jax.tree.map(np.float64, params["params"])
    x = np.float64(x)
    for i in range(3):
        x = x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"]
        x = np.maximum(x, 0) if i < 2 else x
        if f"LayerNorm_{i}" in layers:
            norm = layers[f"LayerNorm_{i}"]
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = x * norm["scale"] + norm["bias"]
    return final(x)


def twins(params, obs, action):
    both = np.concatenate([obs, action], -1)
    return np.stack([mlp(member(params, e), both)[:, 0] for e in (0, 1)])


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_equal_their_equations(weighted):
    cfg = replace(CFG, actor_bc=0.4, critic_bc=0.7, discount=0.9)
    _, state = begin(cfg)
    batch = given()
    rows = np.random.default_rng(3).uniform(0, 2, B) if weighted else np.ones(B)
    new, metrics = call(cfg, state, batch._replace(weight=jnp.asarray(rows, jnp.float32) if weighted else None))

    near = mlp(state.actor_target, batch.next_obs, np.tanh) + np.clip(0.2 * noise(), -0.5, 0.5)
    near = np.clip(near, -1, 1)
    penalty = np.square(near - batch.next_action).sum(1) * np.asarray(batch.known)
    low = twins(state.critic_target, batch.next_obs, near).min(0)
    y = batch.reward + 0.9 * (1 - np.asarray(batch.terminated)) * (low - 0.7 * penalty)
    np.testing.assert_allclose(metrics["critic/target"], y.mean(), rtol=1e-4)
    q = twins(state.critic.params, batch.obs, batch.action)
    np.testing.assert_allclose(metrics["critic/loss"], (rows * (q - np.asarray(y)) ** 2).mean(1).sum(), rtol=1e-4)

    action = mlp(state.actor.params, batch.obs, np.tanh)  # the critics are the new ones
    q = twins(new.critic.params, batch.obs, action).min(0)
    wanted = rows * (0.4 * np.square(action - batch.action).sum(1) - q / np.abs(q).mean())
    np.testing.assert_allclose(metrics["actor/loss"], wanted.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["actor/lambda"], 1 / np.abs(q).mean(), rtol=1e-4)
    plain = call(replace(cfg, normalize_q=False), state, batch)[1]
    np.testing.assert_allclose(
        plain["actor/loss"], (0.4 * np.square(action - batch.action).sum(1) - q).mean(), rtol=1e-4
    )


def target(cfg, state, batch):
    return np.asarray(rebrac.penalised_target(state, batch, noise(), rebrac.networks(cfg, SPEC), cfg))


def test_the_target_falls_with_the_distance_from_the_datas_next_action():
    """By gamma beta_c for each unit of it; where the task ended, or no next action is known, not at all."""
    _, state = begin()
    batch = given()
    free, held, twice = (target(replace(CFG, critic_bc=b), state, batch) for b in (0.0, 1.0, 2.0))
    over, unknown = np.asarray(batch.terminated), ~np.asarray(batch.known)
    assert (free == held)[over | unknown].all()
    assert (free > held)[~(over | unknown)].all()
    np.testing.assert_allclose(free - twice, 2 * (free - held), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(held[over], batch.reward[over])
    far = target(replace(CFG, critic_bc=1.0), state, batch._replace(next_action=batch.next_action + 3))
    assert (far == held)[over | unknown].all()
    assert not (far == held)[~(over | unknown)].any()


def test_without_penalties_and_layer_norm_it_is_td3():
    """One call is TD3+BC's whose cloning weighs nothing, but for the actor's critic: the smaller one, not the first."""
    cfg = replace(CFG, actor_bc=0.0, critic_bc=0.0, critic_norm="none")
    other = td3_bc.Config(batch_size=16, hidden=(8, 8), alpha=1.0)
    _, state = begin(cfg)
    batch, nets = given(), td3_bc.networks(other, SPEC)
    plain = td3_bc.Batch(batch.obs, batch.action, batch.reward, batch.next_obs, batch.terminated)
    np.testing.assert_allclose(
        target(cfg, state, batch), td3_bc.td3_target(td3_bc.State(*state), plain, noise(), nets, other), rtol=1e-5
    )
    loss = lambda params, critic: rebrac.actor_loss(params, critic, batch, rebrac.networks(cfg, SPEC), cfg)[0]  # noqa: E731

    def td3(params, critic):
        action = nets.actor.apply(params, batch.obs)
        return td3_bc.policy_objective(action, critic, plain, nets, 1.0)[0]

    q = np.asarray(nets.critic.apply(state.critic.params, batch.obs, nets.actor.apply(state.actor.params, batch.obs)))
    lower = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), state.critic.params)
    assert (q[0] > q[1]).any()
    for critic, equal in ((lower, True), (state.critic.params, False)):
        ours, theirs = (jax.grad(f)(state.actor.params, critic) for f in (loss, td3))
        alike = jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-6), ours, theirs))
        assert all(alike) == equal


def test_phase_and_lag():
    """Actor and targets on calls 1, 3, 5; the actor's target follows the actor from before the call's step."""
    for lag in (True, False):
        algorithm, state = begin(replace(CFG, target_lag=lag, tau=0.1))
        update, moved = jax.jit(algorithm.update), []
        for t in range(5):
            before = state
            state, metrics = update(state, random_batch(t)._replace(extras=EXTRAS), jax.random.key(t))
            moved.append(not same(before.actor, state.actor))
            assert np.isfinite(metrics["actor/loss"]) == moved[-1]
            assert not same(before.critic.params, state.critic.params)
            wanted = {name: getattr(before, name) for name in TARGETS}
            if moved[-1]:
                followed = before.actor if lag else state.actor
                wanted["actor_target"] = optim.polyak(before.actor_target, followed.params, 0.1)
                wanted["critic_target"] = optim.polyak(before.critic_target, state.critic.params, 0.1)
            for name in TARGETS:
                contracts.close(getattr(state, name), wanted[name], rtol=1e-5, atol=1e-7)
        assert moved == [True, False, True, False, True]
        assert (adam_steps(state.actor), adam_steps(state.critic), int(state.step)) == (3, 5, 5)


# --- the data's next action ---
def episodes(kept):
    """Two episodes of three transitions that only the clock ended; the row of the last state holds an action or not."""
    rng = np.random.default_rng(0)
    action = rng.uniform(0.1, 1, (8, A)).astype(np.float32)
    if not kept:
        action[[3, 7]] = 0
    rows = rng.normal(size=(8, 3)).astype(np.float32), action, np.arange(8, dtype=np.float32), np.zeros(8, bool)
    return dataset.from_lengths(*rows, np.full(2, 3))


@pytest.mark.parametrize("kept", [False, True])
def test_the_next_action_is_that_of_the_next_row(kept):
    data = episodes(kept)
    t = jax.jit(rebrac.sampled(64, 1))(batches.data(data, NORM), jax.random.key(0))
    row = np.asarray(t.extras["row"])
    assert set(row) == set(data.row)
    np.testing.assert_array_equal(t.extras["next_action"], data.action[row + 1])
    np.testing.assert_array_equal(t.obs.state, data.state[row])
    last = np.isin(row + 1, [3, 7])
    np.testing.assert_array_equal(t.extras["known"], ~last | kept)
    batch = rebrac.to_batch(NORM._replace(action_shift=np.full(A, 0.5), action_scale=np.full(A, 0.25)), t)
    np.testing.assert_allclose(batch.next_action, (data.action[row + 1] - 0.5) / 0.25, rtol=1e-6)
    np.testing.assert_array_equal(batch.known, t.extras["known"])


def test_missing_actions_change_nothing_else():
    """With the penalty, the last transition of a clocked episode is learned from as without one."""
    cfg = replace(CFG, critic_bc=5.0)
    algorithm, state = begin(cfg)
    seen = {kept: jax.jit(algorithm.sample)(batches.data(episodes(kept), NORM), jax.random.key(0)) for kept in (0, 1)}
    held, free = (target(cfg, state, rebrac.to_batch(NORM, seen[kept])) for kept in (1, 0))
    last = ~np.asarray(seen[0].extras["known"])
    assert last.any()
    np.testing.assert_array_equal(held[~last], free[~last])
    plain = target(replace(cfg, critic_bc=0.0), state, rebrac.to_batch(NORM, seen[0]))
    np.testing.assert_array_equal(free[last], plain[last])
    assert (held < free)[last].all()


# --- options ---
def test_published_weights_and_norms():
    _, state = begin()
    critic, actor = state.critic.params["params"], state.actor.params["params"]
    assert {name for name in critic if name.startswith("LayerNorm")} == {"LayerNorm_0", "LayerNorm_1"}
    assert not any(name.startswith("LayerNorm") for name in actor)
    for net in (critic, actor):
        np.testing.assert_allclose(net["Dense_0"]["bias"], 0.1)
    assert 0.8 / np.sqrt(5) < np.abs(critic["Dense_0"]["kernel"]).max() <= 1 / np.sqrt(5)
    for head, bound in ((critic["Dense_2"], 3e-3), (actor["Dense_2"], 1e-3)):
        assert 0.5 * bound < np.abs(head["kernel"]).max() <= bound
        assert 0 < np.abs(head["bias"]).max() <= bound
    assert not (critic["Dense_0"]["kernel"][0] == critic["Dense_0"]["kernel"][1]).any()
    _, state = begin(replace(CFG, actor_norm="after", critic_norm="none"))
    assert "LayerNorm_0" in state.actor.params["params"]
    assert "LayerNorm_0" not in state.critic.params["params"]


@pytest.mark.parametrize("change", [{"actor_bc": -0.1}, {"critic_bc": -1.0}, {"discount": 2.0}, {"noise_clip": -0.5}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        rebrac.make(replace(CFG, **change), SPEC)


@contracts.REFUSED
def test_tasks_that_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        rebrac.make(CFG, SPEC._replace(**change))


# --- contracts ---
def test_compiled_once_pure_and_the_same_alone_or_among_seeds():
    contracts.compiled_once_pure_and_alone_as_among_seeds(rebrac.make(CFG, SPEC))


def test_no_key_is_used_twice():
    contracts.no_key_is_used_twice(rebrac.make(CFG, SPEC))


def test_normalisation_is_the_same_in_training_and_acting():
    contracts.normalised_in_training_and_acting(rebrac.make(CFG, SPEC), EXTRAS)


def test_acting():
    contracts.explores_within_bounds_and_is_judged_without_noise(rebrac.make(CFG, SPEC))


# --- learning ---
def trained(cfg, spec, episodes, updates):
    """(algorithm, state) of one seed."""
    algorithm, norm = rebrac.make(cfg, spec), dataset.norm(episodes)
    run, _ = jax.jit(loop.epoch(algorithm, updates))(
        loop.begin(algorithm, Start(norm), (0,)), batches.data(episodes, norm)
    )
    assert not run.failed.any()
    return algorithm, jax.tree.map(lambda x: x[0], run.algo)


def states(n=200):
    s = np.random.default_rng(1).uniform(-0.9, 0.9, (n, 2)).astype(np.float32)
    return s, Observation(s, np.zeros((n, 0)), np.zeros(n), np.zeros(n, np.int32))


SMALL = rebrac.Config(hidden=(64, 64), batch_size=128)


def test_learns_the_optimum_where_a_heavy_penalty_copies():
    """One-step episodes of reward -|a - s/2|^2 by a behaviour that is off by (0.3, -0.3)."""
    s, obs = states()
    for weight, wanted, atol in ((100.0, (0.3, -0.3), 0.06), (1e-3, (0.0, 0.0), 0.08)):
        cfg = replace(SMALL, actor_bc=weight)
        algorithm, state = trained(cfg, EnvSpec("match", (2,), 2), match_problem(), 2_000)
        action = algorithm.act_eval(state, obs, (), jax.random.key(0)).action
        np.testing.assert_allclose((action - s / 2).mean(0), wanted, atol=atol)


def test_the_value_counts_the_penalty_wherever_a_next_action_is_known():
    """On toy/match the best action a* = target(s) is worth (1 - 0.9 gamma beta_c E|a* - a'|^2) / (1 - gamma).

    a' is uniform, so E|a* - a'|^2 = |a*|^2 + 2/3; of ten transitions the last, which the clock ended, has none.
    """
    env, gamma, weight = build("match"), 0.8, 0.4
    arrays = match_arrays(episodes=400)
    arrays["action"][np.cumsum(arrays["length"] + 1) - 1] = 0
    data = dataset.from_lengths(*(arrays[k] for k in ("state", "action", "reward", "terminated", "length")))
    cfg = replace(SMALL, actor_bc=1e-3, critic_bc=weight, discount=gamma, tau=0.02, policy_noise=0.0)
    algorithm, state = trained(cfg, env.spec, data, 3_000)
    s, obs = states()
    action = algorithm.act_eval(state, obs, (), jax.random.key(0)).action
    np.testing.assert_allclose(action, env.target(s), atol=0.2)
    q = rebrac.networks(cfg, env.spec).critic.apply(state.critic.params, s, action).mean(0)
    best = (1 - 0.9 * gamma * weight * (np.square(env.target(s)).sum(1) + 2 / 3)) / (1 - gamma)
    assert abs(float((q - best).mean())) < 0.12  # 3.66; with a penalty on the last transition too 3.51, without any 5
    assert np.corrcoef(q, best)[0, 1] > 0.6
