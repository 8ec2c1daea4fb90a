"""PRDC: its neighbours in the loss, its limits, its delays, and a problem with a known answer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import prdc, td3_bc
from core import batches, dataset, loop
from core.config import ConfigError
from core.types import EnvSpec, Observation, Start
from tests.algos import contracts
from tests.algos.problems import NORM, SPEC, adam_steps, match_problem, random_dataset, same

CFG = prdc.Config(batch_size=16, hidden=(8, 8), state_norm="none")
DATA = random_dataset()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RHEOSTAT_CACHE", str(tmp_path))


def begun(cfg=CFG, data=DATA, seeds=(0,)):
    """(algorithm, run, data on the device)."""
    algorithm = prdc.make(cfg, SPEC)
    start = Start(NORM)
    return (
        algorithm,
        loop.begin(algorithm, start, seeds),
        batches.data(data, NORM, extra=algorithm.prepare(data, start)),
    )


def batch_of(algorithm, on_device, seed=0):
    return algorithm.sample(on_device, jax.random.key(seed))


def first_state(cfg=CFG, data=DATA):
    algorithm, run, on_device = begun(cfg, data)
    return algorithm, jax.tree.map(lambda x: x[0], run.algo), on_device


def cloned(cfg, state, on_device, transition):
    """(what the policy clones, metrics) by the definition of `prdc.constraint`."""
    rows = on_device.extra
    nets = td3_bc.networks(cfg, SPEC)
    ask = prdc.constraint(rows.index, rows.number[transition.extras["row"]], nets, cfg)
    return ask(state, td3_bc.to_batch(NORM, transition, cfg))


def by_hand(cfg, state, transition, k):
    """Actions of the k-th nearest rows, in NumPy."""
    nets = td3_bc.networks(cfg, SPEC)
    policy = np.asarray(nets.actor.apply(state.actor.params, transition.obs.state), np.float64)
    rows = DATA.row
    apart = cfg.beta**2 * np.square(np.asarray(transition.obs.state)[:, None] - DATA.state[rows]).sum(-1)
    apart += np.square(policy[:, None] - cfg.max_action * DATA.action[rows]).sum(-1)
    return cfg.max_action * DATA.action[rows][np.argsort(apart, axis=1)[:, k - 1]]


@pytest.mark.parametrize(("k", "beta", "m"), [(1, 0.3, 1.0), (1, 0.0, 2.0), (3, 0.3, 1.0)])
def test_the_policy_clones_the_kth_nearest_row(k, beta, m):
    cfg = replace(CFG, k=k, beta=beta, max_action=m)
    algorithm, state, on_device = first_state(cfg)
    transition, _ = batch_of(algorithm, on_device)
    wanted, _ = cloned(cfg, state, on_device, transition)
    np.testing.assert_allclose(wanted, by_hand(cfg, state, transition, k), atol=1e-6)


def test_a_heavy_state_makes_it_td3_bc():
    """Every row is then its own nearest: losses and parameters are TD3+BC's."""
    cfg = replace(CFG, beta=1e3)
    algorithm, state, on_device = first_state(cfg)
    parent = td3_bc.make(td3_bc.Config(batch_size=16, hidden=(8, 8), state_norm="none"), SPEC)
    theirs = state
    for seed in range(2):
        key, batch = jax.random.key(seed), batch_of(algorithm, on_device, seed)
        state, metrics = algorithm.update(state, batch, key)
        theirs, expected = parent.update(theirs, batch[0], key)
    assert metrics["prdc/other"] == 0
    assert metrics["prdc/distance"] > 0
    np.testing.assert_allclose(metrics["prdc/bc"], expected["actor/bc"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, theirs)


def test_without_its_weight_the_state_is_nothing():
    cfg = replace(CFG, beta=0.0)
    algorithm, state, on_device = first_state(cfg)
    transition, _ = batch_of(algorithm, on_device)
    moved = DATA._replace(state=DATA.state + np.random.default_rng(1).normal(size=DATA.state.shape).astype(np.float32))
    elsewhere = begun(cfg, moved)[2]
    wanted, metrics = cloned(cfg, state, on_device, transition)
    np.testing.assert_allclose(cloned(cfg, state, elsewhere, transition)[0], wanted)
    assert metrics["prdc/other"] > 0.5


def test_the_actors_gradient_holds_the_neighbour_fixed():
    """Against finite differences in x64 of the loss with the neighbours of the present policy."""
    with jax.enable_x64(True):
        algorithm, state, on_device = first_state(replace(CFG, beta=0.3))
        transition, _ = batch_of(algorithm, on_device)
        nets = td3_bc.networks(CFG, SPEC)
        batch = td3_bc.to_batch(NORM, transition, CFG)
        wanted, _ = cloned(replace(CFG, beta=0.3), state, on_device, transition)
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.float64, state.actor.params))

        def objective(flat):
            action = nets.actor.apply(unravel(flat), batch.obs)
            q = nets.critic_1.apply(td3_bc.member(state.critic.params, 0), batch.obs, action)
            lam = CFG.alpha / jnp.abs(jnp.asarray(at_start)).mean()
            return -lam * q.mean() + jnp.square(action - wanted).mean()

        at_start = nets.critic_1.apply(
            td3_bc.member(state.critic.params, 0), batch.obs, nets.actor.apply(state.actor.params, batch.obs)
        )
        loss = lambda flat: td3_bc.actor_loss(unravel(flat), state.critic.params, batch, wanted, nets, CFG)[0]  # noqa: E731
        gradient = np.asarray(jax.grad(loss)(flat))
        for i in np.random.default_rng(0).choice(len(flat), 12, replace=False):
            step = np.zeros(len(flat))
            step[i] = 1e-4
            slope = (objective(flat + step) - objective(flat - step)) / 2e-4
            np.testing.assert_allclose(gradient[i], slope, rtol=1e-3, atol=1e-5)


def test_delays():
    algorithm, state, on_device = first_state()
    update = jax.jit(algorithm.update)
    for call in range(1, 6):
        before, (state, metrics) = state, update(state, batch_of(algorithm, on_device, call), jax.random.key(call))
        late = call % 2 == 0
        assert same(before.critic_target, state.critic_target) != late
        assert same(before.actor, state.actor) != late
        assert np.isfinite(metrics["prdc/other"]) == late
    assert (adam_steps(state.actor), adam_steps(state.critic)) == (2, 5)


def test_contracts():
    algorithm = prdc.make(CFG, SPEC)
    contracts.compiled_once_pure_and_alone_as_among_seeds(algorithm)
    contracts.no_key_is_used_twice(algorithm)
    contracts.explores_within_bounds_and_is_judged_without_noise(algorithm)


def test_equal_rows_are_not_others():
    """Mixtures draw episodes more than once."""
    twice = DATA._replace(**{key: np.concatenate([getattr(DATA, key)] * 2) for key in ("state", "action", "reward")})
    twice = dataset.from_lengths(twice.state, twice.action, twice.reward, np.tile(DATA.terminated, 2), np.full(12, 20))
    cfg = replace(CFG, beta=1e3)
    algorithm, state, on_device = first_state(cfg, twice)
    _, metrics = cloned(cfg, state, on_device, batch_of(algorithm, on_device)[0])
    assert metrics["prdc/other"] == 0
    assert cloned(replace(cfg, beta=0.0), state, on_device, batch_of(algorithm, on_device)[0])[1]["prdc/other"] > 0.5


def test_histories_are_states_of_keys():
    spec = SPEC._replace(obs_shape=(6,), history=2)
    algorithm = prdc.make(CFG, spec)
    rows = algorithm.prepare(DATA, Start(NORM))
    assert rows.index.state.shape == (len(DATA.row), 6)
    first, second = DATA.row[:2]
    apart = np.square(DATA.state[first] - DATA.state[second]).sum()
    kept = np.square(rows.index.state[0] - rows.index.state[1]).sum()  # (s0, s0) and (s0, s1)
    np.testing.assert_allclose(kept, apart, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"), [({"beta": -1.0}, "beta -1"), ({"beta": 1e20}, "1e.06"), ({"k": 0}, "k 0 be")]
)
def test_bad_options(change, words):
    with pytest.raises(ConfigError, match=words):
        prdc.make(replace(CFG, **change), SPEC)


def test_more_neighbours_than_rows():
    algorithm = prdc.make(replace(CFG, k=500), SPEC)
    with pytest.raises(ConfigError, match="120 transitions"):
        algorithm.prepare(DATA, Start(NORM))


def test_comes_nearer_to_the_optimum_than_td3_bc_with_the_same_alpha():
    """Actions around s/2 + (0.3, -0.3), s/2 the best: PRDC is pulled to the best of what there is."""
    episodes = match_problem()
    norm = dataset.norm(episodes, "standard")
    spec = EnvSpec("match", (2,), 2)
    s = np.random.default_rng(1).uniform(-0.9, 0.9, (200, 2)).astype(np.float32)
    obs = Observation(s, np.zeros((200, 0)), np.zeros(200), np.zeros(200, np.int32))
    error = {}
    for module in (td3_bc, prdc):
        cfg = module.Config(hidden=(64, 64), batch_size=128, alpha=0.03, actor_lr=1e-3, critic_lr=1e-3)
        cfg = replace(cfg, beta=0.5) if module is prdc else cfg
        algorithm, start = module.make(cfg, spec), Start(norm)
        extra = algorithm.prepare(episodes, start) if algorithm.prepare else ()
        run = loop.begin(algorithm, start, (0,))
        run, metrics = jax.jit(loop.epoch(algorithm, 2500))(run, batches.data(episodes, norm, extra=extra))
        state = jax.tree.map(lambda x: x[0], run.algo)
        error[module] = np.abs((algorithm.act_eval(state, obs, (), jax.random.key(0)).action - s / 2).mean(0))
    assert (error[prdc] < 0.055).all()
    assert (error[td3_bc] > 1.5 * error[prdc]).all()
    assert metrics["prdc/other"][0] > 0.5
    assert metrics["prdc/bc"][0] > metrics["actor/bc"][0]
