"""DPPO: its two-part chains and their likelihood, clip and discount by step, imitation, learning from poor cloning."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from algos import dppo
from algos.dppo import Config
from core import chain
from core.chain import Move
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError
from core.critics import Network
from core.types import EnvSpec, Transition
from tests.algos import tuning
from tests.algos.chunked import KEY, close, quick, seen
from tests.algos.tuning import CRITIC, OBS, RATES, SMALL, SPEC, SWEEP, B, begun, grown, largest

CONFIG = Config(
    batch_size=16, epochs=2, net=PolicyNet("diffusion", **SMALL, levels=6), tuned=3, critic=CRITIC, horizon=1,
    sampling_std=0.15,
)  # fmt: skip


def ddim(cfg, steps, **options):
    return replace(cfg, net=replace(cfg.net, levels=20), denoising=Denoising(steps, sampler="ddim"), **options)


def updated(algorithm, state, obs=OBS):
    """(state, metrics) after an update on two steps of each environment with rewards of no meaning."""
    reward, flags = jax.random.normal(jax.random.key(3), (2, B)), jnp.zeros((2, B), bool)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), obs)

    @quick
    def update(state):
        out = jax.vmap(lambda key: algorithm.act(state, obs, (), key))(jax.random.split(KEY))
        t = Transition(both, out.action, reward, both, flags, flags, out.extras, jnp.zeros((2, B)))
        return algorithm.update(state, t, KEY)

    return update(state)


@functools.cache
def state_of(cfg=CONFIG):
    """A state whose policy has moved away from the frozen one."""
    state = begun(dppo.make, cfg)
    return state._replace(actor=state.actor._replace(params=grown(state.actor.params, 1.05)))


def judged(actor, state, states):
    """What all items of chains are, f32[B, J] each."""
    one = lambda level: actor.judge(state.actor.params, state, OBS, states, jnp.full(B, level))  # noqa: E731
    levels = [one(level) for level in range(actor.levels)]
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *levels)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_what_acting_records_is_what_the_likelihood_says(sampler):
    """The ratio is exactly 1 before the first update, whatever the number of steps."""
    cfgs = {
        k: ddim(CONFIG, k, tuned=min(k, 3)) if sampler == "ddim" else
        replace(CONFIG, tuned=min(k, 3), net=replace(CONFIG.net, levels=k))
        for k in (1, 2, 4, 8, 20)
    }  # fmt: skip

    @quick
    def differences(state):
        out = {}
        for k, cfg in cfgs.items():
            _, actor = dppo.actor(cfg, SPEC)
            _, record = actor.play(state, OBS, KEY)
            out[k] = judged(actor, state, record.chain).log_prob - record.log_prob, record
        return out

    for k, (difference, record) in differences(state_of()).items():
        np.testing.assert_allclose(difference, 0, atol=1e-5, err_msg=str(k))
        assert record.chain.shape == (B, min(k, 3) + 1, 2, 2)
        assert np.ptp(record.log_prob) > 0.01


@pytest.mark.parametrize("cfg", [CONFIG, ddim(CONFIG, 4)], ids=["ddpm", "ddim"])
def test_acting_and_judging_multiply_with_all_digits(cfg):
    cfg = replace(cfg, bc_weight=0.1)
    tuning.check_precision(dppo.make(cfg, SPEC), dppo.actor(cfg, SPEC)[1], cfg, state_of(), OBS)


def test_an_update_of_a_single_tuned_step_is_finite_and_leaves_the_frozen_policy():
    cfg = ddim(CONFIG, 4, tuned=1, bc_weight=0.1)
    state = state_of(cfg)
    new, metrics = updated(dppo.make(cfg, SPEC), state)
    np.testing.assert_allclose(metrics["policy/first_ratio"], 1, atol=1e-5)
    assert all(np.isfinite(x) for x in metrics.values())
    assert "policy/bc" in metrics
    close(new.frozen, state.frozen, rtol=0)
    assert 1e-6 < largest(jax.tree.map(jnp.subtract, new.actor.params, state.actor.params)) < 0.1


def test_the_first_steps_are_the_frozen_policys():
    _, actor = dppo.actor(CONFIG, SPEC)
    play, state = quick(lambda state: actor.play(state, OBS, KEY)[1].chain), state_of()
    moved = state._replace(actor=state.actor._replace(params=grown(state.actor.params, 1.2)))
    other = state._replace(frozen=grown(state.frozen, 1.2))
    ours, tuned, frozen = (play(x) for x in (state, moved, other))
    np.testing.assert_array_equal(ours[:, 0], tuned[:, 0])
    assert jnp.abs(ours[:, 1] - tuned[:, 1]).max() > 1e-3
    assert jnp.abs(ours[:, 0] - frozen[:, 0]).max() > 1e-3


def test_the_likelihood_gives_the_frozen_policy_no_gradient():
    _, actor = dppo.actor(CONFIG, SPEC)

    @quick
    def slopes(state):
        states = actor.play(state, OBS, KEY)[1].chain

        def total(params, frozen):
            there = state._replace(actor=state.actor._replace(params=params), frozen=frozen)
            return judged(actor, there, states).log_prob.sum()

        return jax.grad(total, argnums=(0, 1))(state.actor.params, state.frozen)

    tuned, frozen = slopes(state_of())
    assert largest(tuned) > 1e-2
    assert largest(frozen) == 0


def test_clips_widen_along_the_chain():
    cfg = replace(CONFIG, clip=0.02, clip_base=0.001, clip_rate=3.0)
    ours = np.asarray(dppo.clip_schedule(jnp.arange(5), 5, cfg))
    np.testing.assert_allclose(ours[[0, -1]], [0.001, 0.02], rtol=1e-5)
    np.testing.assert_allclose(ours[2], 0.001 + 0.019 * (np.exp(1.5) - 1) / (np.exp(3) - 1), rtol=1e-5)
    assert (np.diff(ours) > 0).all()
    np.testing.assert_allclose(dppo.clip_schedule(jnp.arange(1), 1, cfg), [0.02], rtol=1e-6)


def test_advantages_are_cut_at_quantiles_and_discounted_towards_the_noise():
    rng = np.random.default_rng(0)
    advantage, level = rng.normal(size=50), rng.integers(4, size=50)
    cfg = replace(CONFIG, denoising_discount=0.9, advantage_low=0.1, advantage_high=0.8)
    ours = dppo.shaped(jnp.asarray(advantage), jnp.asarray(level), 4, cfg)
    cut = np.clip(advantage, *np.quantile(advantage, [0.1, 0.8]))
    np.testing.assert_allclose(ours, cut * 0.9 ** (3 - level), rtol=1e-5, atol=1e-6)
    whole = dppo.shaped(jnp.asarray(advantage), jnp.full(50, 3), 4, replace(CONFIG, denoising_discount=0.9))
    np.testing.assert_allclose(whole, advantage, rtol=1e-6)


def test_l_is_a_mean_of_clamped_densities_of_what_is_carried_out():
    rng = np.random.default_rng(1)
    mean, after = rng.normal(0, 0.3, (2, 20, 2, 2))
    cfg = replace(CONFIG, log_prob_std=0.2)
    each = -0.5 * ((after - mean) / 0.2) ** 2 - np.log(0.2 * np.sqrt(2 * np.pi))
    for horizon, rows in ((1, 1), (0, 2)):
        value, clamped = dppo.log_prob(
            Move(jnp.asarray(mean), jnp.asarray(0.05)), jnp.asarray(after), replace(cfg, horizon=horizon)
        )  # the law's own std is below the floor
        np.testing.assert_allclose(value, each.clip(-5, 2)[:, :rows].mean((1, 2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(clamped, (each < -5)[:, :rows].mean((1, 2)), rtol=1e-6)
    slope = jax.grad(lambda m: dppo.log_prob(Move(m, 0.05), jnp.asarray(after), cfg)[0].sum())(jnp.asarray(mean))
    assert (slope[:, 1] == 0).all()
    np.testing.assert_array_equal(slope[:, 0] == 0, each[:, 0] < -5)
    assert 0.05 < (each < -5).mean() < 0.95


def test_exploring_is_noisy_to_the_end_and_judging_is_not():
    """Exploring, every step has at least the floor's noise; judged, DDIM has none, and DDPM none in its last step."""
    _, actor = dppo.actor(CONFIG, SPEC)
    given, stride = dppo.actor(cfg := ddim(CONFIG, 4), SPEC)
    player, (start, normals) = dppo.TunedChain(cfg, given), given.noises(KEY, B, 4)

    @quick
    def chains(state):
        out = stride.play(state, OBS, KEY)[1].chain
        tail = player.tail(state.actor.params, OBS.state, cfg.eta)
        law = chain.moves(tail, out)
        params = state.actor.params
        judged = stride.best(state, OBS, KEY), stride.best(state._replace(frozen=params), OBS, KEY)
        whole, _ = chain.sample(player.step(params, OBS.state, 0.0), start, 0 * normals, last=1.0)
        return out, law, judged, whole[:, -1], actor.play(state, OBS, KEY)[0]

    out, law, (_, best), whole, end = chains(state_of())
    noise = (out[:, 1:] - law.mean) / np.maximum(law.std, cfg.sampling_std)
    np.testing.assert_allclose(noise, jnp.clip(normals[:, 1:], -3, 3), atol=1e-4)
    np.testing.assert_allclose(law.std[:, -1], 1e-10, rtol=1e-5)
    np.testing.assert_allclose(best, whole, atol=1e-6)
    assert jnp.abs(end).max() > 1  # the chain's end is not clipped, the action is
    action = dppo.make(CONFIG, SPEC).act(state_of(), OBS, (), KEY).action
    np.testing.assert_allclose(action, jnp.clip(end, -1, 1), atol=1e-5)
    np.testing.assert_allclose(dppo.actor(CONFIG, SPEC)[0].eval_floor(Denoising()), [1e-3] * 5 + [0])
    np.testing.assert_array_equal(given.eval_floor(cfg.denoising), 0)


def test_imitation_is_the_likelihood_of_the_frozen_policys_chains():
    """Of all numbers of the chunk, whatever the horizon; the tuned policy likes its own chains best."""
    given, actor = dppo.actor(CONFIG, SPEC)
    player = dppo.TunedChain(CONFIG, given)

    @quick
    def outcome(params, state):
        value, slope = jax.value_and_grad(actor.penalty)(params, state, OBS, KEY)
        steps = player.step(state.frozen, OBS.state, 1.0), player.tail(state.frozen, OBS.state, 1.0)
        states, _ = player.sample(*steps, *given.noises(KEY, B, 6), CONFIG.sampling_std)
        law = chain.moves(player.tail(params, OBS.state, 1.0), states)
        return value, slope, law, states

    state = state_of()
    value, slope, law, states = outcome(grown(state.frozen, 1.5), state)
    each = chain.log_density(states[:, 1:], law.mean, jnp.maximum(law.std, CONFIG.log_prob_std))
    np.testing.assert_allclose(value, -each.clip(-5, 2).mean(), rtol=1e-4)
    assert largest(slope) > 1e-3
    assert value > outcome(state.frozen, state)[0]


def test_images_are_shifted_and_what_was_recorded_is_judged_anew():
    """Log-probabilities are those of the shifted images, or the first ratio would not be 1; both encoders learn."""
    world = envs.make("toy/pixels", B)
    obs = world.reset(0)[1]
    net = replace(CONFIG.net, levels=2, encoder="impala_debug")
    cfg = replace(CONFIG, net=net, tuned=2, augment=2, batch_size=32, epochs=1)
    cfg = replace(cfg, sampling_std=0.1, horizon=0, critic=Network((8,), "tanh", residual=False))
    state = begun(dppo.make, cfg, world.spec)
    new, metrics = updated(dppo.make(cfg, world.spec), state, seen(obs.state))
    np.testing.assert_allclose(metrics["policy/first_ratio"], 1, atol=1e-5)
    for now, before in ((new.actor, state.actor), (new.critic, state.critic)):
        assert largest(jax.tree.map(jnp.subtract, now.params["encoder"], before.params["encoder"])) > 1e-6


def test_it_improves_a_poor_policy():
    net = PolicyNet("diffusion", **{**SMALL, "hidden": (32, 32)}, levels=5)
    cfg = replace(CONFIG, net=net, batch_size=256, epochs=5, horizon=0, sampling_std=0.1, **RATES)
    runs, metrics = tuning.learn(dppo.make(cfg, SWEEP.spec), tuning.poor(net), (0,), epochs=6)
    tuning.check_progress(metrics, 0.5)
    close(runs[-1].algo.frozen, runs[0].algo.actor.params, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": PolicyNet("reflow")}, "not reflow"),
        ({"entropy_weight": 0.1}, "entropy_weight must be 0"),
        ({"horizon": 3}, "horizon 3"),
        ({"sampling_std": 0.0}, "must be positive"),
        ({"log_prob_std": 0.0}, "must be positive"),
        ({"advantage_low": 0.9, "advantage_high": 0.1}, "advantage_low 0.9"),
        ({"clip_rate": 0.0}, "clip_rate 0.0"),
        ({"log_prob_min": 3.0}, "log_prob_min 3.0"),
        ({"tuned": 7}, "tuned 7"),
        ({"tuned": -1}, "tuned -1"),
        ({"denoising": Denoising(3)}, "denoising.steps 3"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        dppo.actor(replace(CONFIG, **options), SPEC)


def test_tasks_with_goals_are_refused():
    with pytest.raises(ConfigError, match="goals"):
        dppo.make(CONFIG, EnvSpec("goals", (3,), 2, goal_shape=(2,)))
