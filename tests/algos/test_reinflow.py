"""ReinFlow: its chains' likelihood, the noise and its gradients, the regulariser, and learning from poor cloning."""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from algos import reinflow
from algos.reinflow import Config
from core import chain, loop, online
from core.chain import Move
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError
from core.dataset import identity_norm
from core.evaluate import Evaluator
from core.types import EnvSpec, Start
from tests.algos import tuning
from tests.algos.chunked import KEY, close, quick, seen
from tests.algos.tuning import CRITIC, OBS, PLAN, RATES, SMALL, SPEC, SWEEP, B, begun, grown, largest

FLOWS = {
    "reflow": PolicyNet("reflow", **SMALL),
    "shortcut": PolicyNet("shortcut", **SMALL, cond=(4,), combine="multiply"),
    "meanflow": PolicyNet("meanflow", **SMALL),
}
# a wide range of l, so that nothing is clamped
CONFIG = Config(
    batch_size=16, epochs=2, duplicates=1, net=FLOWS["reflow"], denoising=Denoising(4), noise_hidden=(8,),
    critic=CRITIC, log_prob_min=-50.0, log_prob_max=50.0,
)  # fmt: skip
LEVEL = jnp.zeros(B, jnp.int32)


@functools.cache
def state_of(net=CONFIG.net):
    return begun(reinflow.make, replace(CONFIG, net=net))


@pytest.mark.parametrize("family", FLOWS)
def test_what_acting_records_is_what_the_likelihood_says(family):
    """The ratio is exactly 1 before the first update, whatever the number of steps."""

    @quick
    def differences(state):
        out = {}
        for steps in (1, 2, 4, 8, 20):
            _, actor = reinflow.actor(replace(CONFIG, net=FLOWS[family], denoising=Denoising(steps)), SPEC)
            _, record = actor.play(state, OBS, KEY)
            judged = actor.judge(state.actor.params, state, OBS, record.chain, LEVEL)
            out[steps] = judged.log_prob - record.log_prob[:, 0], record.log_prob
        return out

    for steps, (difference, recorded) in differences(state_of(FLOWS[family])).items():
        np.testing.assert_allclose(difference, 0, atol=1e-5, err_msg=str(steps))
        assert np.ptp(recorded) > 0.01


@pytest.mark.parametrize("family", FLOWS)
def test_acting_and_judging_multiply_with_all_digits(family):
    cfg = replace(CONFIG, net=FLOWS[family], bc_weight=0.1)
    tuning.check_precision(reinflow.make(cfg, SPEC), reinflow.actor(cfg, SPEC)[1], cfg, begun(reinflow.make, cfg), OBS)


def euler_states(policy, given):
    """The noiseless chain's states by plain Euler steps."""
    steps, x, states = CONFIG.denoising.steps, given.noises(KEY, B, 0)[0], []
    for t in np.arange(steps) / steps:
        velocity = given.denoise(policy, OBS.state, x, jnp.full(B, t), jnp.full(B, 1 / steps)).out
        x = (x + velocity / steps).clip(-1, 1)
        states.append(x)
    return jnp.stack(states, axis=1)


@pytest.mark.parametrize("family", FLOWS)
def test_without_noise_chains_are_eulers(family):
    """Judged, a policy follows its flow; so does one that explores with next to no noise."""
    cfg, state = replace(CONFIG, net=FLOWS[family], std_min=1e-6, std_max=1e-6), state_of(FLOWS[family])
    given, actor = reinflow.actor(cfg, SPEC)
    act = reinflow.make(cfg, SPEC).act_eval

    @quick
    def ways(state):
        keys, policy = jnp.stack([KEY, jax.random.key(5)]), state.actor.params["policy"]
        action = jax.vmap(lambda key: act(state, OBS, (), key).action)(keys)
        return euler_states(policy, given), actor.play(state, OBS, KEY)[1], action

    states, record, (action, other) = ways(state)
    np.testing.assert_allclose(action, states[:, -1], atol=1e-6)
    np.testing.assert_allclose(record.chain[:, 1:], states, atol=1e-4)
    assert jnp.abs(other - action).max() > 0.01  # what it starts from stays random


def stds(cfg, *params):
    """For each, f32[B, K, H, A] of the noise in states of a chain from everywhere."""
    player, chains = reinflow.NoisyFlow(cfg, reinflow.actor(cfg, SPEC)[0]), jax.random.normal(KEY, (B, 5, 2, 2))
    std = quick(lambda params: chain.moves(player.step(params, OBS.state, cfg.std_max), chains).std)
    return [std(x) for x in params]


def test_noise_stays_in_its_bounds():
    cfg, params = replace(CONFIG, std_min=0.05, std_max=0.3), state_of().actor.params
    blank, some, much = stds(cfg, *({**params, "noise": grown(params["noise"], x)} for x in (0.0, 3.0, 1e4)))
    np.testing.assert_allclose(blank, np.sqrt(0.05 * 0.3), rtol=1e-5)
    for std in (some, much):
        assert std.min() > 0.05 - 1e-6
        assert std.max() < 0.3 + 1e-6
    assert np.ptp(some) > 0.05
    np.testing.assert_allclose(np.ptp(much), 0.25, rtol=1e-4)


@pytest.mark.parametrize("with_start", [True, False])
def test_the_likelihood_and_the_entropy_in_closed_form(with_start):
    """No velocity and noise s: l = -sum dx^2 / (2 s^2) - K A (ln s + 0.919), plus that of the start, averaged."""
    k, s, numbers = 3, 0.2, 4
    states = jax.random.normal(KEY, (B, k + 1, 2, 2))
    law = Move(states[:, :-1], jnp.full((B, k, 2, 2), s))
    x = np.asarray(states, float)
    total = -((x[:, 1:] - x[:, :-1]) ** 2).sum((1, 2, 3)) / (2 * s**2) - k * numbers * (np.log(s) + 0.9189385)
    entropy = k * numbers * (np.log(s) + 1.4189385)
    if with_start:
        total += -0.5 * (x[:, 0] ** 2).sum((1, 2)) - numbers * 0.9189385
        entropy += numbers * 1.4189385
    for per_step, per_dimension in ((True, True), (False, False), (True, False)):
        cfg = replace(CONFIG, with_start=with_start, per_step=per_step, per_dimension=per_dimension)
        terms, among = k + with_start, numbers if per_dimension else 1
        ours = reinflow.log_prob(law, states, cfg)
        np.testing.assert_allclose(ours[0], total / (terms if per_step else 1) / among, rtol=1e-4)
        np.testing.assert_allclose(ours[1], entropy / terms / among, rtol=1e-5)


def slopes(cfg, what, state):
    """((gradients of a mean of what is judged: policy's, noise net's), record, judged) of chains that it walked."""
    _, actor = reinflow.actor(cfg, SPEC)

    @quick
    def slope(state):
        _, record = actor.play(state, OBS, KEY)
        judge = lambda params: actor.judge(params, state, OBS, record.chain, LEVEL)  # noqa: E731
        grads = jax.grad(lambda params: what(judge(params)).mean())(state.actor.params)
        return (grads["policy"]["denoiser"]["params"], grads["noise"]), record, judge(state.actor.params)

    return slope(state)


@pytest.mark.parametrize("noise_input", ["time", "state", "step"])
def test_the_noise_net_trains_the_states_encoder_and_nothing_else_of_the_policy(noise_input):
    """The entropy depends on the noise alone, which reads the time's embedding as it is."""
    cfg = replace(CONFIG, net=PolicyNet("reflow", **SMALL, cond=(5, 4)), noise_input=noise_input)
    (policy, noise), *_ = slopes(cfg, lambda judged: judged.entropy, begun(reinflow.make, cfg))
    code = policy.pop("MLP_0")
    assert largest(policy) == 0
    assert largest(code) > 1e-5
    assert largest(noise) > 1e-4
    assert ("Embed_0" in noise["params"]) == (noise_input == "step")


def test_beyond_its_range_l_gives_no_gradient():
    free, *_ = slopes(CONFIG, lambda judged: judged.log_prob, state_of())
    assert min(map(largest, free)) > 1e-3
    held, record, judged = slopes(replace(CONFIG, log_prob_max=-3.0), lambda judged: judged.log_prob, state_of())
    assert largest(held) == 0
    np.testing.assert_array_equal(record.log_prob, -3.0)
    np.testing.assert_array_equal(judged.clamped, 1.0)


def test_the_noises_upper_bound_falls_and_stays():
    bound = lambda i: float(reinflow.noise_bound(jnp.asarray(i), 0.1, 0.24, 1000))  # noqa: E731
    np.testing.assert_allclose([bound(i) for i in (0, 350)], 0.24, rtol=1e-6)
    np.testing.assert_allclose([bound(i) for i in (1000, 1001, 5000)], 0.198, rtol=1e-6)
    np.testing.assert_allclose(bound(675), (0.24 + 0.198) / 2, rtol=1e-5)
    cfg = replace(CONFIG, noise_decay=10)
    player = reinflow.NoisyFlow(cfg, reinflow.actor(cfg, SPEC)[0])
    np.testing.assert_allclose([player.bound(jnp.int32(i)) for i in (0, 10)], [0.24, 0.198], rtol=1e-6)
    assert reinflow.NoisyFlow(CONFIG, player.given).bound(jnp.int32(10)) == 0.24


def test_noise_that_is_not_learned():
    cfg = replace(CONFIG, noise_fixed="vp", std_min=0.05, std_max=0.2)
    t = np.linspace(0, 1, 5)
    wanted = {"vp": np.clip(np.sqrt(0.2 * t * (1 - t)), 0.05, 0.2), "lin": np.maximum(0.1 * t, 0.05), "min": 0.05}
    for kind, std in wanted.items():
        np.testing.assert_allclose(reinflow.fixed_std(replace(cfg, noise_fixed=kind), 5, 0.2), std, rtol=1e-5)
    constant, params = replace(CONFIG, noise="constant", std_min=0.15), state_of().actor.params
    player = reinflow.NoisyFlow(constant, reinflow.actor(constant, SPEC)[0])
    assert set(player.init(KEY, params["policy"], OBS.state[:1])) == {"policy"}
    np.testing.assert_allclose(stds(constant, {"policy": params["policy"]})[0], 0.15, rtol=1e-6)
    std = stds(replace(CONFIG, noise_steps=3), params)[0]
    np.testing.assert_allclose(std[:, 0], CONFIG.std_min, rtol=1e-6)
    assert (np.ptp(std[:, 1:], axis=0) > 1e-4).all()


def test_acting_draws_with_a_floor_that_the_likelihood_does_not_know():
    """The ratio is 1 all the same: l is always that of the likelihood."""
    cfg = replace(CONFIG, sampling_std=0.5, std_max=0.2, net=replace(CONFIG.net, denoised_clip=0.0))
    given, actor = reinflow.actor(cfg, SPEC)
    player, (start, normals) = reinflow.NoisyFlow(cfg, given), given.noises(KEY, B, 4)

    @quick
    def outcome(state):
        _, record = actor.play(state, OBS, KEY)
        law = chain.moves(player.step(state.actor.params, OBS.state, cfg.std_max), record.chain)
        return record, law, reinflow.log_prob(law, record.chain, cfg)[0]

    record, law, value = outcome(state_of())
    moved = (record.chain[:, 1:] - law.mean)[:, :-1]
    np.testing.assert_allclose(moved, 0.5 * jnp.clip(normals, -3, 3)[:, :-1], atol=1e-5)
    np.testing.assert_allclose(record.log_prob[:, 0], value, atol=1e-5)
    assert law.std.max() < 0.2 + 1e-6
    assert jnp.abs(record.chain[:, -1]).max() <= 1
    np.testing.assert_allclose(record.chain[:, 0], start, rtol=1e-6)


def test_a_policy_is_no_distance_from_itself():
    given, _ = reinflow.actor(CONFIG, SPEC)
    start, policy = given.noises(KEY, B, 0)[0], state_of().actor.params["policy"]

    @quick
    def outcome(params, frozen, start, other):
        def distance(params, frozen):
            tuned, old = (given.step(p, OBS.state, CONFIG.denoising) for p in (params, frozen))
            return reinflow.w2(tuned, old, 4, start, other)

        return jax.value_and_grad(distance, argnums=(0, 1))(params, frozen)

    assert outcome(policy, policy, start, start)[0] == 0
    assert outcome(policy, policy, start, 0 * start)[0] > 1e-3
    value, (tuned, frozen) = outcome(grown(policy, 1.1), policy, start, start)
    assert value > 1e-4
    assert largest(tuned) > 1e-4
    assert largest(frozen) == 0


@pytest.mark.parametrize("kind", [{"regulariser": "w2", "w2_start": "zero"}, {"regulariser": "bc"}])
def test_the_regulariser_holds_the_policy_back(kind):
    """Its gradient, for a policy that has moved away from the frozen one, points away from that."""
    _, actor = reinflow.actor(replace(CONFIG, bc_weight=0.5, **kind), SPEC)
    state = state_of()
    before = state.actor.params
    state, apart = state._replace(frozen=before["policy"]), {**before, "policy": grown(before["policy"], 1.1)}
    outcome = quick(jax.value_and_grad(actor.penalty))
    (value, grads), (least, _) = (outcome(params, state, OBS, KEY) for params in (apart, before))
    away = jax.tree.map(jnp.subtract, apart["policy"], before["policy"])
    assert sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads["policy"], away)), strict=True)) > 0
    assert value > least


@pytest.mark.parametrize(
    ("obs_dim", "action_dim", "net", "policy", "noise", "critic"),
    [
        (11, 3, PolicyNet("reflow"), 553_020, 6_732, 134_913),
        (17, 6, PolicyNet("reflow"), 568_392, 7_896, None),
        (376, 17, PolicyNet("reflow"), 797_300, 33_732, None),
        (60, 9, PolicyNet("shortcut", (256,) * 3, "mish", cond=(32, 16), combine="add"), 157_684, None, 147_457),
    ],
    ids=["hopper", "walker2d", "humanoid", "kitchen"],
)
def test_networks_have_the_published_sizes(obs_dim, action_dim, net, policy, noise, critic):
    algorithm = reinflow.make(Config(net=net), EnvSpec("sizes", (obs_dim,), action_dim, chunk=4))
    start = Start(identity_norm(obs_dim, action_dim), 1)
    state = jax.eval_shape(lambda key: algorithm.init(key, start), KEY)
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))  # noqa: E731
    nets = state.actor.params["policy"], state.actor.params["noise"], state.critic.params
    ours, published = [count(net) for net in nets], (policy, noise, critic)
    told = [own if size is None else size for own, size in zip(ours, published, strict=True)]
    assert ours == told


# --- learning ---

FINE = replace(CONFIG, batch_size=256, epochs=5, noise_decay=1000, **RATES)
SEEDS = (0, 3)


@pytest.fixture(scope="module")
def parent():
    return tuning.poor(FLOWS["reflow"])


@pytest.fixture(scope="module")
def learnt(parent):
    """(algorithm, runs, metrics) of two seeds."""
    algorithm = reinflow.make(FINE, SWEEP.spec)
    return algorithm, *tuning.learn(algorithm, parent, SEEDS, epochs=8)


def test_times_that_differ_between_acting_and_judging_show(parent):
    """The grid of one and the likelihood of the other: a trained policy's ratio is not 1."""
    actors = [
        reinflow.actor(replace(CONFIG, denoising=Denoising(2, grid)), SWEEP.spec)[1] for grid in ("left", "inclusive")
    ]
    state = begun(reinflow.make, replace(CONFIG, denoising=Denoising(2)), SWEEP.spec, factor=1.0, parent=parent)
    obs = seen(jax.random.uniform(KEY, (B, 4), minval=-1, maxval=1))

    @quick
    def ratios(state):
        record = actors[1].play(state, obs, KEY)[1]
        judged = [actor.judge(state.actor.params, state, obs, record.chain, LEVEL) for actor in actors]
        return [jnp.abs(jnp.exp(now.log_prob - record.log_prob[:, 0]) - 1).max() for now in judged]

    left, inclusive = ratios(state)
    assert inclusive < 1e-5
    assert left > 3e-3


def test_it_improves_a_poor_policy(learnt):
    algorithm, runs, metrics = learnt
    judge = Evaluator(algorithm.act_eval, algorithm.init_carry, SWEEP, len(SEEDS), 4)
    before, after = (judge(run.algo, [7, 7]).ret.mean(axis=(1, 2)) for run in (runs[0], runs[-1]))
    assert (before < -2).all()
    assert (after > -1.35).all(), after
    for metric in metrics:
        np.testing.assert_allclose(metric["policy/first_ratio"], 1, atol=1e-5)
        np.testing.assert_array_equal(metric["policy/steps_done"], 1)


@pytest.mark.parametrize(
    ("family", "steps", "options"),
    [("shortcut", 2, {"w2_start": "zero"}), ("meanflow", 1, {"regulariser": "bc"})],
    ids=["shortcut W2", "meanflow imitation"],
)
def test_it_improves_others_in_few_steps_beside_a_regulariser(family, steps, options):
    cfg = replace(FINE, net=FLOWS[family], denoising=Denoising(steps), bc_weight=0.01, **options)
    runs, metrics = tuning.learn(reinflow.make(cfg, SWEEP.spec), tuning.poor(cfg.net), (0,))
    tuning.check_progress(metrics, 0.2)
    assert all(np.isfinite(metric["policy/bc"]).all() for metric in metrics)
    close(runs[-1].algo.frozen, runs[0].algo.frozen, rtol=0)
    close(runs[0].algo.frozen, runs[0].algo.actor.params["policy"], rtol=0)


def test_a_seed_alone_in_a_host_environment_learns_what_it_learns_beside_others_in_a_jitted_one(parent, learnt):
    algorithm, runs, _ = learnt
    world = envs.make("toy/pointmass", PLAN.num_envs, envs.Options(chunk=2, max_steps=30, host=True))
    run = tuning.begin(algorithm, parent, SEEDS[1:], world)
    program = online.hosted(algorithm, run, world, PLAN, parent.norm, 10 * PLAN.steps)
    *_, report = loop.train(program, run, 0, 10 * PLAN.steps)
    other = jax.tree.map(lambda x: x[1:], runs[1].algo.actor.params)
    close(report.run.algo.actor.params, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": PolicyNet("diffusion")}, "not diffusion"),
        ({"std_min": 0.0}, "0 < std_min 0.0"),
        ({"std_min": 0.3}, "std_max 0.24"),
        ({"log_prob_min": 60.0}, "log_prob_min 60.0"),
        ({"regulariser": "kl"}, "regulariser"),
        ({"noise_fixed": "cosine"}, "noise_fixed"),
        ({"noise_steps": -1}, "noise_steps -1"),
        ({"noise_hold": 2.0}, "noise_hold 2.0"),
        ({"denoising": Denoising(-1)}, "-1"),
        ({"denoising": Denoising(4, "right")}, "grid"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        reinflow.make(replace(CONFIG, **options), SPEC).act(state_of(), OBS, (), KEY)


def test_tasks_with_goals_are_refused():
    with pytest.raises(ConfigError, match="goals"):
        reinflow.make(CONFIG, SPEC._replace(goal_shape=(2,)))
