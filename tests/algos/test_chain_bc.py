"""Cloning by flows and diffusion: what each family fits, what chains it walks, and two modes that all of them learn."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import chain_bc
from algos.chain_bc import Config, Fit
from core import batches, chain, chunk_policy, dataset, diffusion, flow, sampling
from core.chunk_policy import Denoising, Policy, PolicyNet
from core.config import ConfigError, UnknownName
from core.networks import Denoised
from core.types import EnvSpec, Start
from tests.algos.chunked import close, quick, same, seen

SPEC = EnvSpec("modes", (1,), 1, chunk=2)
SMALL = {"hidden": (8, 8, 8), "time_dim": 4}
NETS = {
    "reflow": PolicyNet("reflow", **SMALL),
    "shortcut": PolicyNet("shortcut", **SMALL, cond=(4,), combine="add"),
    "meanflow": PolicyNet("meanflow", **SMALL, cond=(4,), combine="add"),
    "diffusion": PolicyNet("diffusion", **SMALL),
    "gaussian": PolicyNet("gaussian", **SMALL),
}
RNG = np.random.default_rng(0)


def noises(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def two_modes(episodes=100, length=20):
    """Actions 0.2 s +- 0.5 with a little noise; an episode keeps its state and its sign."""
    rows = episodes * (length + 1)
    of = lambda x: np.repeat(x, length + 1)[:, None]  # noqa: E731
    state = of(RNG.uniform(-1, 1, episodes)).astype(np.float32)
    action = 0.2 * state + 0.5 * of(RNG.choice([-1, 1], episodes)) + 0.05 * RNG.normal(size=(rows, 1))
    none = np.zeros(rows, np.float32)
    return dataset.from_lengths(state, action.astype(np.float32), none, none > 0, np.full(episodes, length))


@pytest.fixture(scope="module")
def problem():
    episodes = two_modes()
    norm = dataset.norm(episodes, "minmax", "minmax")
    return batches.data(episodes, norm, sampling.alias_table(dataset.whole(episodes, 2))), Start(norm)


def learn(problem, net, walks, updates=1000):
    """Errors of the actions after training [n, 2], their distance to s / 5, one array per walk of the same starts."""
    data, start = problem
    algorithm = chain_bc.make(Config(batch_size=256, net=net, lr=4e-3, ema_start=200, ema_rate=0.8), SPEC)
    given, obs = chunk_policy.policy(net, SPEC), seen(np.linspace(-1, 1, 1000, dtype=np.float32)[:, None])
    x, normals = noises(1000, 2, 1, seed=2), noises(1000, 20, 2, 1, seed=3)

    @quick
    def run(state, keys):
        def update(state, key):
            return algorithm.update(state, algorithm.sample(data, key), jax.random.fold_in(key, 0))[0], None

        learnt, _ = jax.lax.scan(update, state, keys)
        read = given.read(learnt.ema, learnt.norm, obs)
        ends = []
        for walk in walks:
            step, steps = given.step(learnt.ema, read, walk), given.steps(walk)
            states, _ = chain.sample(step, x, normals[:, :steps], given.eval_floor(walk))
            ends.append(given.out(learnt.norm, states[:, -1])[..., 0] - 0.2 * obs.state)
        return ends

    begin = quick(algorithm.init)(jax.random.key(0), start)
    return [np.asarray(end) for end in run(begin, jax.random.split(jax.random.key(1), updates))]


def hits(error):
    """Share of chunks that are at a mode."""
    return (np.abs(np.abs(error) - 0.5) < 0.2).all(1).mean()


def finds_both(error):
    """Nearly all chunks are at a mode, the same one at both steps, half of them at each."""
    return hits(error) > 0.85 and (error[:, 0] * error[:, 1] > 0).mean() > 0.97 and abs((error > 0).mean() - 0.5) < 0.1


WIDE = {"hidden": (64, 64, 64)}


def test_rectified_flow_learns_two_modes(problem):
    """In ten steps; a single one goes to the mean of the data, between them."""
    ten, one = learn(problem, PolicyNet("reflow", **WIDE), [Denoising(10), Denoising(1)])
    assert finds_both(ten)
    assert hits(one) < 0.05


@pytest.mark.parametrize("family", ["shortcut", "meanflow"])
def test_models_of_spans_learn_two_modes_in_one_step(problem, family):
    four, one = learn(problem, PolicyNet(family, **WIDE, cond=(16,), combine="add"), [Denoising(4), Denoising(1)])
    assert finds_both(four)
    assert hits(one) > 0.6
    assert np.median(np.abs(four - one)) < 0.12


def test_diffusion_learns_two_modes(problem):
    ddpm, ddim = learn(problem, PolicyNet("diffusion", **WIDE), [Denoising(), Denoising(10, sampler="ddim")])
    assert finds_both(ddpm)
    assert finds_both(ddim)


def drawn(net, spec=SPEC, seed=0):
    """(policy, parameters from NumPy: no program to compile)."""
    given, rng = chunk_policy.policy(net, spec), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: given.init(key, spec), jax.random.key(0))
    return given, jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / np.sqrt(max(x.size // x.shape[-1], 1)), x.dtype), shapes
    )


CHAINS = [(family, k, Denoising(k)) for family in ("reflow", "shortcut", "meanflow") for k in (1, 2, 4, 8, 20)]
CHAINS += [("gaussian", 1, Denoising(1))] + [("diffusion", k, Denoising(k)) for k in (1, 2, 4, 8, 20)]
CHAINS += [("diffusion", 20, Denoising(k, sampler="ddim")) for k in (1, 2, 4, 8, 20)]


@pytest.mark.parametrize(("family", "levels", "denoising"), CHAINS)
def test_chains_are_judged_by_the_laws_they_were_drawn_from(family, levels, denoising):
    """Every family and number of steps: one law in sampling and in the likelihood, so that first ratios are 1."""
    given, params = drawn(replace(NETS[family], levels=levels))

    @quick
    def both(state, x, normals):
        step = given.step(params, state, denoising, eta=1.0)
        states, law = chain.sample(step, x, normals, 0.1, 3.0, 1.0)
        return states, law, chain.moves(step, states)

    states, law, again = both(noises(6, 1), noises(6, 2, 1, seed=1), noises(6, denoising.steps, 2, 1, seed=2))
    assert states.shape == (6, denoising.steps + 1, 2, 1)
    np.testing.assert_allclose(again.mean, law.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(again.std, law.std, rtol=1e-5, atol=1e-7)
    assert np.isfinite(states).all()
    if family == "diffusion":
        assert (np.asarray(law.std[:, :-1]) > 1e-3).all()
        assert np.ptp(law.std, axis=(0, 2, 3)).max() == 0
    else:
        assert not np.asarray(law.std).any()
        assert np.abs(law.mean).max() <= 1 or family == "gaussian"


class Clock(Policy):
    """Answers with the time that it is asked at, and a tenth of the span."""

    def denoise(self, params, state, x, t, span=None):
        return Denoised(jnp.zeros_like(x) + (t + 0.1 * span)[..., None, None], t, state)


@pytest.mark.parametrize("grid", ["left", "inclusive"])
def test_the_grid_that_is_asked_for(grid):
    clock = Clock(*chunk_policy.policy(replace(NETS["reflow"], denoised_clip=0.0), SPEC))
    states, _ = chain.sample(
        clock.step({}, jnp.zeros((3, 1)), Denoising(4, grid)), jnp.zeros((3, 2, 1)), jnp.zeros((3, 4, 2, 1))
    )
    times = {"left": [0, 0.25, 0.5, 0.75], "inclusive": [0, 1 / 3, 2 / 3, 1]}[grid]
    np.testing.assert_allclose(states[0, 1:, 0, 0], np.cumsum(np.add(times, 0.025)) / 4, rtol=1e-5)


@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_a_flow_is_judged_by_eulers_method(limit):
    """Means are clipped at `limit` after each step, the action at 1; no noise is added."""
    given, params = drawn(replace(NETS["shortcut"], denoised_clip=limit))
    params = jax.tree.map(lambda x: 2 * x, params)
    state, key = noises(50, 1), jax.random.key(1)
    ours = quick(lambda key: (given.sample(params, state, key, Denoising(3)), given.noises(key, 50, 3)[0]))(key)
    denoise, x = quick(given.denoise), np.asarray(ours[1])
    for k in range(3):
        x = x + denoise(params, state, x, jnp.full(50, k / 3), jnp.full(50, 1 / 3)).out / 3
        x = np.clip(x, -limit, limit) if limit else x
    assert limit or np.abs(x).max() > 1
    np.testing.assert_allclose(ours[0], np.clip(x, -1, 1), rtol=1e-4, atol=1e-4)


def test_diffusion_is_judged_with_its_noise():
    """At least 1e-3 of it but at the end; DDIM has none."""
    given, params = drawn(NETS["diffusion"])
    np.testing.assert_allclose(given.eval_floor(Denoising()), [1e-3] * 19 + [0])
    assert not np.any(given.eval_floor(Denoising(5, sampler="ddim")))
    assert not np.any(chunk_policy.policy(NETS["reflow"], SPEC).eval_floor(Denoising(5)))
    state = noises(40, 1)

    @quick
    def ends(key):
        start, normals = given.noises(key, 40, 20)
        step = given.step(params, state, Denoising())
        means = chain.sample(step, start, 0 * normals, last=1.0)[0][:, -1]
        return means, *(given.sample(params, state, key, Denoising(), clip) for clip in (0.0, 10.0, 100.0))

    means, still, noisy, free = ends(jax.random.key(1))
    np.testing.assert_allclose(still, means, atol=1e-5)
    np.testing.assert_array_equal(noisy, free)  # no normal is that large
    assert np.abs(noisy - still).max() > 0.1


def fit(family, **options):
    """(regression of 64 rows, its clean chunks, params, states, policy)."""
    given, params = drawn(NETS[family])
    state, x1 = noises(64, 1), jnp.tanh(noises(64, 2, 1, seed=1))
    made = quick(partial(chain_bc.regression, given=given, options=Fit(**options)))(
        params, state, x1, jax.random.key(3)
    )
    return made, np.asarray(x1), params, state, given


def straight(made, x1, delta=0.0):
    """Whether each row is a point and the velocity of a path to x1: x = x1 - (1 - t) v, but for `delta`."""
    x0 = (x1 - made.target) / (1 - delta)
    t = np.asarray(made.t)[:, None, None]
    return np.isclose(made.x, (1 - (1 - delta) * t) * x0 + t * x1, atol=1e-5).all((1, 2))


def test_rectified_flow_fits_straight_paths():
    made, x1, *_ = fit("reflow")
    assert straight(made, x1).all()
    assert not made.span.any()
    assert np.ptp(made.t) > 0.8
    late, *_ = fit("reflow", times="beta")
    assert (late.t != made.t).any()


def test_shortcuts_fit_two_halves_in_a_share_of_the_rows():
    made, x1, params, state, given = fit("shortcut", shortcut_share=0.5, shortcut_highest=3, shortcut_delta=0.01)
    span, t = np.asarray(made.span), np.asarray(made.t)
    assert set(span[:32]) == {1.0, 0.5, 0.25, 0.125}
    np.testing.assert_array_equal(t[:32] % span[:32], 0)
    assert (t + span <= 1).all()
    assert not span[32:].any()
    assert straight(made, x1, 0.01)[32:].all()
    x0 = x1 - np.asarray(fit("reflow")[0].target)  # the same draws
    at = t[:, None, None]
    np.testing.assert_allclose(made.x, (1 - 0.99 * at) * x0 + at * x1, rtol=1e-4, atol=1e-5)
    denoise, half = quick(given.denoise), span / 2
    first = denoise(params, state, made.x, t, half).out
    second = denoise(params, state, made.x + half[:, None, None] * first, t + half, half).out
    np.testing.assert_allclose(made.target[:32], (first + second)[:32] / 2, rtol=1e-4, atol=1e-5)
    assert not straight(made, x1, 0.01)[:32].all()


def test_a_shortcut_model_without_self_consistency_is_rectified_flow():
    """The same draws, the same regression."""
    assert same(fit("reflow")[0], fit("shortcut", shortcut_share=0.0, shortcut_delta=0.0)[0])


def test_mean_flow_fits_velocities_where_the_interval_is_a_point():
    made, x1, params, state, given = fit("meanflow", meanflow_instant=0.25)
    span, t = np.asarray(made.span), np.asarray(made.t)
    instant = span == 0
    assert 8 < instant.sum() < 28
    assert straight(made, x1)[instant].all()
    assert (t + span <= 1).all()
    # elsewhere x0 = (x - t x1) / (1 - t) tells v, and the slope along the path is a difference quotient
    x0 = (made.x - t[:, None, None] * x1) / (1 - t)[:, None, None]
    v, denoise, h = x1 - x0, quick(given.denoise), 1e-2
    ends = [denoise(params, state, made.x + d * v, t + d, span - d).out for d in (-h, h)]
    wanted = v + span[:, None, None] * (ends[1] - ends[0]) / (2 * h)
    early = t < 0.7  # v is not told well near t = 1
    np.testing.assert_allclose(made.target[early], wanted[early], atol=2e-2)
    assert np.abs(made.target - v)[early & ~instant].max() > 0.1


@pytest.mark.parametrize("predicts", ["noise", "clean"])
def test_diffusion_fits_every_level(predicts):
    cfg = Config(net=replace(NETS["diffusion"], levels=5, predicts=predicts))
    given, x1 = chunk_policy.policy(cfg.net, SPEC), noises(200, 2, 1)
    made = quick(lambda key: chain_bc.regression(None, None, x1, key, given, cfg.fit))(jax.random.key(0))
    assert set(np.asarray(made.t)) == {0, 1, 2, 3, 4}
    bar = diffusion.cosine(5).bar[np.asarray(made.t, int)][:, None, None]
    noise = (made.x - np.sqrt(bar) * x1) / np.sqrt(1 - bar)
    np.testing.assert_allclose(made.target, noise if predicts == "noise" else x1, atol=1e-3)
    assert np.std(noise) == pytest.approx(1, abs=0.15)


def test_a_gaussian_fits_the_chunks_and_knows_no_noise():
    made, x1, params, state, given = fit("gaussian")
    np.testing.assert_array_equal(made.target, x1)
    assert not any(np.any(u) for u in (made.x, made.t, made.span))
    step = given.step(params, state, Denoising())
    np.testing.assert_array_equal(step(noises(64, 2, 1), 0).mean, step(noises(64, 2, 1, seed=1), 0).mean)


TINY = Config(
    batch_size=8, net=NETS["shortcut"], lr=1e-2, lr_min=0.0, lr_warmup=4, lr_cycle=1000, weight_decay=0.1,
    ema_rate=0.7, ema_every=2, ema_start=3,
)  # fmt: skip


def test_updates_move_the_average_by_its_schedule(problem):
    """Every second update: a copy until three are done, then 0.7 of the average and 0.3 of the weights."""
    algorithm = chain_bc.make(TINY, SPEC)
    states = [quick(algorithm.init)(jax.random.key(0), problem[1])]
    update = quick(lambda state, key: algorithm.update(state, algorithm.sample(problem[0], key), key))
    keys = jax.random.split(jax.random.key(1), 8)
    for key in keys:
        states.append(update(states[-1], key)[0])
    assert same(states[0].net.params, states[0].ema)
    assert same(states[0].net.params, states[1].net.params)  # the learning rate begins at lr_min, 0
    assert not same(states[1].net.params, states[2].net.params)
    average = states[0].ema
    for done, state in enumerate(states[1:], 1):
        if done % 2 == 0:
            kept = 0.0 if done <= 3 else 0.7
            average = jax.tree.map(lambda a, p, kept=kept: kept * a + (1 - kept) * p, average, state.net.params)
        close(state.ema, average, rtol=1e-5, atol=1e-7)
        assert int(state.step) == done
    again, metrics = update(states[-2], keys[-1])  # pure
    assert same(again, states[-1])
    assert np.isfinite(metrics["loss"])


def test_the_average_acts(problem):
    algorithm = chain_bc.make(TINY, SPEC)
    state = quick(algorithm.init)(jax.random.key(0), problem[1])
    act = quick(algorithm.act_eval)
    other = jax.tree.map(lambda x: x + 1, state.ema)
    at = lambda state, key=0: act(state, seen(np.zeros((9, 1), np.float32)), (), jax.random.key(key)).action  # noqa: E731
    np.testing.assert_array_equal(at(state), at(state._replace(net=state.net._replace(params=other))))
    assert (at(state) != at(state._replace(ema=other))).any()
    assert (at(state) != at(state, key=1)).any()  # the start is drawn
    assert algorithm.act is algorithm.act_eval


def test_whole_chunks_are_drawn(problem):
    episodes = dataset.from_lengths(
        np.zeros((9, 1), np.float32), np.zeros((9, 1), np.float32), np.zeros(9, np.float32), np.zeros(9, bool),
        np.array([1, 2, 3]),
    )  # fmt: skip
    eligible = lambda chunk: chain_bc.make(TINY, SPEC._replace(chunk=chunk)).eligible(episodes).tolist()  # noqa: E731
    assert eligible(2) == [False, True, False, True, True, False]
    assert eligible(3) == [False] * 3 + [True] + [False] * 2
    assert all(eligible(0))
    batch = jax.eval_shape(chain_bc.make(TINY, SPEC).sample, problem[0], jax.random.key(0))
    assert batch.action.shape == (8, 2, 1)


def test_actions_are_normalised_for_the_network():
    given = chunk_policy.policy(NETS["reflow"], EnvSpec("t", (1,), 2, chunk=3))
    shift, scale = np.float32([0.2, -0.1]), np.float32([0.5, 0.1])
    norm = dataset.identity_norm(1, 2)._replace(action_shift=shift, action_scale=scale)
    action = RNG.uniform(-1, 1, (4, 3, 2)).astype(np.float32)
    x = given.chunk(norm, action)
    np.testing.assert_allclose(x, (action - shift) / scale, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(given.out(norm, x), action, rtol=1e-4, atol=1e-5)
    assert given.out(norm, 10 + x).max() == 1
    assert chunk_policy.policy(NETS["reflow"], EnvSpec("t", (1,), 2)).chunk(norm, action[:, 0]).shape == (4, 1, 2)


def test_states_are_normalised_and_may_be_limited():
    norm = dataset.identity_norm(1, 1)._replace(state_shift=np.float32([1]), state_scale=np.float32([0.5]))
    obs = seen(np.float32([[1.1], [3.0], [-9.0]]))
    for limit, wanted in ((0.0, [0.2, 4, -20]), (2.0, [0.2, 2, -2])):
        given = chunk_policy.policy(replace(NETS["reflow"], obs_clip=limit), SPEC)
        np.testing.assert_allclose(given.read({}, norm, obs)[:, 0], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (EnvSpec("t", (3,), 2), (5, 2)),
        (EnvSpec("t", (3,), 2, chunk=4), (5, 4, 2)),
        (EnvSpec("t", (6,), 2, chunk=4, history=2), (5, 4, 2)),
        (EnvSpec("t", (16, 16, 3), 2, chunk=1), (5, 1, 2)),
    ],
)
@pytest.mark.parametrize("family", NETS)
def test_shapes_of_every_kind_of_task(spec, shape, family):
    """Traced, not run: initialised, updated, acted with."""
    net = replace(NETS[family], encoder="impala_debug")
    algorithm = chain_bc.make(Config(batch_size=5, net=net, augment=2 * spec.pixels), spec)
    frame = spec.frame_shape
    width = frame[0] if len(frame) == 1 else 1
    rows = {"state": np.zeros((11, *frame), np.uint8 if spec.pixels else np.float32)}
    episodes = dataset.from_lengths(
        rows["state"], np.zeros((11, 2), np.float32), np.zeros(11, np.float32), np.zeros(11, bool), np.array([10])
    )
    data = batches.data(episodes, dataset.identity_norm(width, 2))

    def all_of_it(key):
        state = algorithm.init(key, Start(data.norm))
        after, _ = algorithm.update(state, algorithm.sample(data, key), key)
        obs = seen(np.zeros((5, *spec.obs_shape), rows["state"].dtype))
        return state, after, algorithm.act(after, obs, (), key).action

    before, after, action = jax.eval_shape(all_of_it, jax.random.key(0))
    assert action.shape == shape
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert ("encoder" in before.ema) == spec.pixels


def test_the_encoder_of_images_is_trained():
    spec = EnvSpec("t", (8, 8, 3), 1)
    given, params = drawn(replace(NETS["reflow"], encoder="impala_debug"), spec)
    obs = seen(RNG.integers(0, 256, (4, 8, 8, 3), np.uint8))
    x0, x1 = noises(2, 4, 1, 1)
    made, norm = flow.rectified(x0, x1, jnp.full(4, 0.5)), dataset.identity_norm(1, 1)
    grads, _ = quick(jax.grad(lambda p: chain_bc.loss(p, norm, obs, made, given), has_aux=True))(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"goal_shape": (2,)}, "single-task"), ({"num_actions": 4}, "discrete")],
)
def test_tasks_that_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        chain_bc.make(Config(), SPEC._replace(**change))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (Config(net=PolicyNet("reflov")), "reflow"),
        (Config(net=PolicyNet("diffusion"), denoising=Denoising(21, sampler="ddim")), "denoising.steps 21"),
        (Config(lr_cycle=5, lr_warmup=5), "warmup 5 and cycle 5"),
    ],
)
def test_options_that_are_refused(cfg, message):
    with pytest.raises(ConfigError, match=message):
        chain_bc.make(cfg, SPEC)


@pytest.mark.parametrize("family", NETS)
def test_steps_that_a_family_does_not_have_are_refused(family):
    given = chunk_policy.policy(NETS[family], SPEC)
    refused = {Denoising(-1): "denoising.steps -1 must be at least 1, or 0"}
    if family != "reflow":
        refused[Denoising(grid="inclusive")] = f"grid inclusive and sampler ddpm with {family}: only reflow"
    if family == "diffusion":
        refused[Denoising(5)] = "steps 5: a diffusion policy of 20 levels takes 20 steps by ddpm"
        refused |= {Denoising(n, sampler="ddim"): f"denoising.steps {n}" for n in (-1, 21)}
    else:
        refused[Denoising(sampler="ddim")] = f"sampler ddim with {family}: .* only diffusion policies"
    if family == "gaussian":
        refused[Denoising(2)] = "steps 2: a gaussian policy takes one step"
    for denoising, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            given.steps(denoising)


def test_steps_that_families_have():
    of = lambda family, *denoising: chunk_policy.policy(NETS[family], SPEC).steps(Denoising(*denoising))  # noqa: E731
    assert [of(family) for family in NETS] == [4, 4, 4, 20, 1]
    assert [of("reflow", 7, "inclusive"), of("shortcut", 2), of("meanflow", 1)] == [7, 2, 1]
    assert [of("diffusion", 20), of("diffusion", 5, "left", "ddim"), of("gaussian", 1)] == [20, 5, 1]


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (Config(net=replace(NETS["shortcut"], cond=())), "time_dim is 4"),
        (Config(net=replace(NETS["shortcut"], combine="concate")), "nearest: concat"),
        (Config(net=replace(NETS["reflow"], hidden=(8, 8))), "odd number"),
        (Config(net=replace(NETS["reflow"], activation="mis")), "mish"),
        (Config(net=NETS["reflow"], fit=Fit(times="logit")), "logitnormal"),
        (Config(net=NETS["meanflow"], fit=Fit(times="logit")), "logitnormal"),
        (Config(net=NETS["reflow"], denoising=Denoising(grid="inclusiv")), "inclusive"),
        (Config(net=replace(NETS["diffusion"], predicts="noize")), "noise"),
        (Config(net=NETS["reflow"], ema_every=0), "at least 1"),
    ],
)
def test_options_that_tracing_refuses(problem, cfg, message):
    """Before anything is trained: `train` traces an update and an action first."""

    def trace(key):
        algorithm = chain_bc.make(cfg, SPEC)
        state = algorithm.init(key, problem[1])
        state, _ = algorithm.update(state, algorithm.sample(problem[0], key), key)
        return algorithm.act(state, seen(np.zeros((3, 1), np.float32)), (), key)

    with pytest.raises((ConfigError, UnknownName), match=message):
        jax.eval_shape(trace, jax.random.key(0))
