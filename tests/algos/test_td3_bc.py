"""TD3+BC: its equations at the edges, its delays, the contracts, and a problem with a known answer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import td3_bc
from core import batches, dataset, loop, optim
from core.config import ConfigError
from core.types import EnvSpec, Observation, Start
from envs.toys import build
from tests.algos import contracts
from tests.algos.problems import NORM, SPEC, adam_steps, match_problem, random_batch, random_dataset, same
from tests.conftest import match_arrays

CFG = td3_bc.Config(batch_size=16, hidden=(8, 8))


def begin(cfg=CFG, norm=NORM, seed=0):
    algorithm = td3_bc.make(cfg, SPEC)
    return algorithm, jax.jit(algorithm.init)(jax.random.key(seed), Start(norm))


def test_delays():
    """After 5 calls the actor's optimiser has made 2 steps and the critics' 5; targets move on calls 2 and 4 only."""
    algorithm, state = begin()
    update = jax.jit(algorithm.update)
    moved, reported = [], []
    for call in range(5):
        before = state
        state, metrics = update(state, random_batch(call), jax.random.key(call))
        moved.append((not same(before.actor, state.actor), not same(before.actor_target, state.actor_target),
                      not same(before.critic_target, state.critic_target)))  # fmt: skip
        reported.append(not np.isnan(metrics["actor/loss"]))
        assert not same(before.critic.params, state.critic.params)
    assert moved == [(False,) * 3, (True,) * 3, (False,) * 3, (True,) * 3, (False,) * 3]
    assert reported == [False, True, False, True, False]
    assert (adam_steps(state.actor), adam_steps(state.critic), int(state.step)) == (2, 5, 5)


def test_targets_start_as_copies_and_weights_as_torchs():
    _, state = begin()
    assert same(state.actor.params, state.actor_target)
    assert same(state.critic.params, state.critic_target)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(state.critic.params))
    first = state.critic.params["params"]["Dense_0"]
    assert not (first["kernel"][0] == first["kernel"][1]).any()
    assert 0 < np.abs(first["bias"]).max() <= 1 / np.sqrt(5)


def test_a_decaying_optimiser_leaves_the_targets_alone(monkeypatch):
    """AdamW moves a target only by tau times the way to the online network."""
    decaying = optim.adam(1e-3, weight_decay=0.5)
    monkeypatch.setattr(td3_bc, "optimisers", lambda cfg: (decaying, decaying))
    algorithm, state = begin()
    update = jax.jit(algorithm.update)
    first, _ = update(state, random_batch(), jax.random.key(0))
    assert same(first.critic_target, state.critic_target)
    second, _ = update(first, random_batch(1), jax.random.key(1))
    wanted = optim.polyak(first.critic_target, second.critic.params, CFG.tau)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), second.critic_target, wanted)


def test_the_target_stops_at_terminals_only():
    _, state = begin()
    nets = td3_bc.networks(CFG, SPEC)
    raw = random_batch()
    noise = jnp.zeros((16, 2))

    def target(transition):
        return td3_bc.td3_target(state, td3_bc.to_batch(state.norm, transition, CFG), noise, nets, CFG)

    yes, no = jnp.ones(16, bool), jnp.zeros(16, bool)
    np.testing.assert_allclose(target(raw._replace(terminated=yes)), raw.reward)
    np.testing.assert_array_equal(target(raw._replace(truncated=yes)), target(raw._replace(truncated=no)))
    assert not np.allclose(target(raw._replace(terminated=no)), raw.reward)


def test_max_action_scales_policy_noise_and_clip():
    """With m = 3 the target's actions are 3 times those of m = 1 for the same weights and draws, clips included."""
    _, state = begin()
    draws = jnp.asarray(np.random.default_rng(1).normal(size=(16, 2)) * 3, jnp.float32)
    seen = {}
    for m in (1.0, 3.0):
        cfg = replace(CFG, max_action=m)
        nets = td3_bc.networks(cfg, SPEC)

        def spy(params, obs, action, m=m):
            seen[m] = action
            return jnp.zeros((2, 16))

        nets = nets._replace(critic=nets.critic._replace(apply=spy))
        td3_bc.td3_target(state, td3_bc.to_batch(state.norm, random_batch(), cfg), draws, nets, cfg)
    np.testing.assert_allclose(seen[3.0], 3 * seen[1.0], rtol=1e-5)
    assert np.abs(seen[1.0]).max() <= 1
    policy = td3_bc.networks(CFG, SPEC).actor.apply(state.actor_target, random_batch().next_obs.state)
    assert np.abs(seen[1.0] - policy).max() == pytest.approx(0.5)
    algorithm, state = begin(replace(CFG, max_action=3.0))
    out = algorithm.act(state, random_batch().obs, (), jax.random.key(0)).action
    assert np.abs(out).max() <= 1


def test_network_options():
    _, state = begin(replace(CFG, critic_norm="before", weights="orthogonal"))
    critic = state.critic.params["params"]
    assert set(critic) == {"Dense_0", "Dense_1", "Dense_2", "LayerNorm_0", "LayerNorm_1"}
    assert not critic["Dense_0"]["bias"].any()
    assert set(state.actor.params["params"]) == {"Dense_0", "Dense_1", "Dense_2"}


def test_shapes_are_checked():
    _, state = begin()
    nets = td3_bc.networks(CFG, SPEC)
    batch = td3_bc.to_batch(state.norm, random_batch(), CFG)
    with pytest.raises(ValueError, match=r"reward \(16, 1\)"):
        td3_bc.td3_target(state, batch._replace(reward=batch.reward[:, None]), jnp.zeros((16, 2)), nets, CFG)
    with pytest.raises(ValueError, match="noise"):
        td3_bc.td3_target(state, batch, jnp.zeros((16, 1)), nets, CFG)


def test_normalisation_is_the_same_in_training_and_acting():
    """Shifted and scaled states with the matching norm give what plain states give without one."""
    shift, scale = np.array([5.0, -2.0, 0.5], np.float32), np.array([2.0, 0.1, 3.0], np.float32)
    norm = NORM._replace(state_shift=shift, state_scale=scale)
    plain, moved = random_batch(), random_batch()
    lift = lambda obs: obs._replace(state=obs.state * scale + shift)  # noqa: E731
    moved = moved._replace(obs=lift(moved.obs), next_obs=lift(moved.next_obs))
    (algorithm, a), (_, b) = begin(), begin(norm=norm)
    key = jax.random.key(3)
    for _ in range(2):
        a, _ = jax.jit(algorithm.update)(a, plain, key)
        b, _ = jax.jit(algorithm.update)(b, moved, key)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a.actor.params, b.actor.params)
    np.testing.assert_allclose(
        algorithm.act_eval(a, plain.obs, (), key).action, algorithm.act_eval(b, moved.obs, (), key).action, atol=1e-5
    )


def test_acting():
    algorithm, state = begin()
    obs = random_batch().obs
    judged = [algorithm.act_eval(state, obs, (), jax.random.key(i)).action for i in range(2)]
    assert (judged[0] == judged[1]).all()
    explored = [algorithm.act(state, obs, (), jax.random.key(i)).action for i in range(2)]
    assert (explored[0] != explored[1]).all()
    assert np.std(explored[0] - judged[0]) == pytest.approx(0.1, rel=0.5)
    assert np.abs(explored).max() <= 1


@pytest.mark.parametrize("change", [{"max_action": 0.0}, {"tau": 5.0}, {"actor_period": 0}, {"policy_noise": -0.1}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        td3_bc.make(replace(CFG, **change), SPEC)


@contracts.REFUSED
def test_tasks_that_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        td3_bc.make(CFG, SPEC._replace(**change))


def program(cfg=CFG, updates=6):
    algorithm = td3_bc.make(cfg, SPEC)
    episodes = random_dataset()
    norm = dataset.norm(episodes, cfg.state_norm)
    return algorithm, batches.data(episodes, norm), Start(norm), jax.jit(loop.epoch(algorithm, updates))


def test_compiled_once_pure_and_the_same_alone_or_among_seeds():
    algorithm, data, start, epoch = program()
    traces = []
    counted = jax.jit(lambda run, data: traces.append(0) or loop.epoch(algorithm, 6)(run, data))
    run = loop.begin(algorithm, start, (0, 1, 2))
    once, metrics = counted(run, data)
    again, _ = counted(run, data)
    assert same(once.algo, again.algo)
    counted(once, data)
    assert len(traces) == 1
    for i in range(3):
        alone, own = epoch(jax.tree.map(lambda x, i=i: x[i : i + 1], run), data)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y[0], rtol=1e-5, atol=1e-6), once.algo, alone.algo
        )
        for name in own:
            np.testing.assert_allclose(metrics[name][i], own[name][0], rtol=1e-4, atol=1e-5)


def test_fused_updates_are_single_updates():
    _, data, start, six = program()
    algorithm, _, _, one = program(updates=1)
    run = loop.begin(algorithm, start, (0,))
    fused, _ = six(run, data)
    for _ in range(6):
        run, _ = one(run, data)
    assert same(fused.algo, run.algo)


def test_no_key_is_used_twice():
    algorithm, data, start, _ = program()
    run = loop.begin(algorithm, start, (0,))
    state = jax.tree.map(lambda x: x[0], run.algo)
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        batch = jax.jit(algorithm.sample)(data, jax.random.fold_in(key, 1))
        jax.jit(algorithm.update)(state, batch, jax.random.fold_in(key, 2))
        jax.jit(algorithm.act)(state, batch.obs, (), jax.random.fold_in(key, 3))
        jax.jit(algorithm.init)(jax.random.fold_in(key, 4), start)
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda key: (jax.random.normal(key), jax.random.normal(key)))(key)


def test_learns_the_optimum_where_cloning_copies():
    """alpha = 0 is cloning and keeps the behaviour's error; a large alpha finds s/2."""
    episodes = match_problem()
    norm = dataset.norm(episodes, "standard")
    data = batches.data(episodes, norm)
    spec = EnvSpec("match", (2,), 2)
    s = np.random.default_rng(1).uniform(-0.9, 0.9, (200, 2)).astype(np.float32)
    obs = Observation(s, np.zeros((200, 0)), np.zeros(200), np.zeros(200, np.int32))
    error = {}
    for alpha in (0.0, 20.0):
        cfg = td3_bc.Config(hidden=(64, 64), batch_size=128, alpha=alpha, actor_lr=1e-3, critic_lr=1e-3)
        algorithm = td3_bc.make(cfg, spec)
        run, metrics = jax.jit(loop.epoch(algorithm, 2500))(loop.begin(algorithm, Start(norm), (0,)), data)
        state = jax.tree.map(lambda x: x[0], run.algo)
        error[alpha] = (algorithm.act_eval(state, obs, (), jax.random.key(0)).action - s / 2).mean(0)
        assert not run.failed.any()
        assert np.isfinite(float(metrics["actor/loss"][0]))
    np.testing.assert_allclose(error[0.0], [0.3, -0.3], atol=0.06)
    np.testing.assert_allclose(error[20.0], [0.0, 0.0], atol=0.08)


def test_value_of_a_task_that_only_the_clock_ends():
    """On toy/match the best policy is worth 1 / (1 - gamma) everywhere, also one step before the time limit."""
    env, gamma = build("match"), 0.8
    arrays = match_arrays(episodes=400)
    episodes = dataset.from_lengths(*(arrays[k] for k in ("state", "action", "reward", "terminated", "length")))
    norm = dataset.norm(episodes, "standard")
    cfg = td3_bc.Config(
        hidden=(64, 64),
        batch_size=128,
        alpha=20.0,
        actor_lr=1e-3,
        critic_lr=1e-3,
        discount=gamma,
        tau=0.02,
        policy_noise=0.0,
    )
    algorithm, nets = td3_bc.make(cfg, env.spec), td3_bc.networks(cfg, env.spec)
    run = loop.begin(algorithm, Start(norm), (0,))
    run, _ = jax.jit(loop.epoch(algorithm, 3000))(run, batches.data(episodes, norm))
    state = jax.tree.map(lambda x: x[0], run.algo)
    s = np.random.default_rng(1).uniform(-0.9, 0.9, (200, 2)).astype(np.float32)
    obs = Observation(s, np.zeros((200, 0)), np.zeros(200), np.zeros(200, np.int32))
    action = algorithm.act_eval(state, obs, (), jax.random.key(0)).action
    np.testing.assert_allclose(action, env.target(s), atol=0.2)
    q = nets.critic.apply(state.critic.params, norm.state(s), action)
    best = 1 / (1 - gamma)
    assert abs(float(q.mean()) - best) < 0.05 * best  # a limit taken for an end: 1 / (1 - 0.9 gamma), 0.71 of it
