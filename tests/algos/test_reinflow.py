"""ReinFlow: its chains' likelihood, the noise and its gradients, the regulariser, and learning from poor cloning."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from algos import chain_bc, reinflow
from algos.chain_bc import Net, Walk
from algos.reinflow import Config
from core import batches, chain, dataset, loop, online, sampling
from core.chain import Move
from core.config import ConfigError
from core.critics import Network
from core.dataset import identity_norm
from core.evaluate import Evaluator
from core.types import EnvSpec, Observation, Start, Transition
from tests.algos.test_chain_ppo import quick

SPEC = EnvSpec("toy", (3,), 2, chunk=2)
SMALL = {"hidden": (16, 16), "activation": "tanh", "residual": False, "time_dim": 4}
FLOWS = {
    "reflow": Net("reflow", **SMALL),
    "shortcut": Net("shortcut", **SMALL, cond=(4,), combine="multiply"),
    "meanflow": Net("meanflow", **SMALL),
}
# a wide range of l, so that nothing is clamped
CONFIG = Config(
    batch_size=16, epochs=2, duplicates=1, net=FLOWS["reflow"], walk=Walk(4), noise_hidden=(8,),
    critic=Network((16,), "tanh", residual=False), log_prob_min=-50.0, log_prob_max=50.0,
)  # fmt: skip
KEY, B = jax.random.key(0), 16


def seen(state):
    """Observations of states [..., S]."""
    lead = state.shape[:-1] if state.dtype != jnp.uint8 else state.shape[:-3]
    return Observation(state, jnp.zeros((*lead, 0)), jnp.zeros(lead), jnp.zeros(lead, jnp.int32))


OBS = seen(jax.random.normal(jax.random.key(1), (B, 3)))


def grown(params, factor):
    """Parameters as of a network that has learned something: what it says depends on the time."""
    return jax.tree.map(lambda x: factor * x, params)


def begun(make, cfg, spec=SPEC, factor=2.0, parent=None):
    """(algorithm, its first state).

    Args: factor: of the policy's random parameters.
    """
    algorithm = make(cfg, spec)
    norm = parent.norm if parent else identity_norm(math.prod(spec.obs_shape), spec.action_dim)
    state = quick(lambda key: algorithm.init(key, Start(norm, B, parent)))(KEY)
    actor, frozen = (grown(x, factor) for x in (state.actor.params, state.frozen))
    return algorithm, state._replace(actor=state.actor._replace(params=actor), frozen=frozen)


def a_rollout(algorithm, state, obs=OBS):
    """Two steps of each environment with rewards of no meaning."""
    rng, flags = np.random.default_rng(0), jnp.zeros((2, B), bool)
    out = [algorithm.act(state, obs, (), jax.random.key(i)) for i in range(2)]
    out = jax.tree.map(lambda *x: jnp.stack(x), *out)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), obs)
    reward = jnp.asarray(rng.normal(size=(2, B)), jnp.float32)
    return Transition(both, out.action, reward, both, flags, flags, out.extras, reward * 0)


def first_ratio(algorithm, state, obs=OBS):
    """(the first ratio of an update, the state after it)."""
    new, metrics = quick(lambda s: algorithm.update(s, a_rollout(algorithm, s, obs), KEY))(state)
    return metrics["policy/first_ratio"], new


def poor(net, updates=600):
    """(state of a policy that was cloned from a controller with much noise, its parent's statistics)."""
    rng, rows = np.random.default_rng(0), 100 * 21
    state = rng.uniform(-1, 1, (rows, 4)).astype(np.float32)
    action = np.clip(-0.3 * state[:, :2] + 0.5 * rng.standard_normal((rows, 2)), -1, 1).astype(np.float32)
    none = np.zeros(rows, np.float32)
    episodes = dataset.from_lengths(state, action, none, none > 0, np.full(100, 20))
    norm = dataset.norm(episodes, "minmax", "minmax")
    algorithm = chain_bc.make(chain_bc.Config(net=net, ema_start=200), SWEEP.spec)
    data = batches.data(episodes, norm, sampling.alias_table(algorithm.eligible(episodes)))

    @quick
    def cloned(key):
        def update(state, key):
            return algorithm.update(state, algorithm.sample(data, key), jax.random.fold_in(key, 0))[0], None

        return jax.lax.scan(update, algorithm.init(key, Start(norm)), jax.random.split(key, updates))[0]

    return cloned(KEY)


PLAN = online.Plan(16, 32, chunk=2)
SWEEP = envs.make("toy/pointmass", 16, envs.Options(chunk=2, max_steps=30))  # the best return is about -1.0
RATES = {"actor_lr": 1e-3, "actor_lr_min": 1e-3, "critic_lr": 2e-3, "critic_lr_min": 2e-3}


def begin(algorithm, parent, seeds, world):
    stacked = jax.tree.map(lambda x: jnp.stack([x] * len(seeds)), parent)
    return online.begin(algorithm, Start(parent.norm, PLAN.num_envs, stacked), seeds, world, PLAN)


def learn(algorithm, parent, seeds, epochs=4):
    """Fine-tune on the point mass by epochs of 10 iterations -> (runs, metrics) before and after each."""
    runs, metrics = [begin(algorithm, parent, seeds, SWEEP)], [{}]
    epoch = online.epoch(algorithm, SWEEP, PLAN, parent.norm, 10 * PLAN.steps)
    epoch = quick(epoch, compiler_options={"xla_backend_optimization_level": 0})  # it compiles for longer than it runs
    for _ in range(epochs):
        run, metric = epoch(runs[-1])
        runs.append(run)
        metrics.append(metric)
    return runs, metrics


def judge_of(algorithm, seeds):
    """Run -> mean returns of the seeds' policies, from the same starts."""
    judge = Evaluator(algorithm.act_eval, algorithm.init_carry, SWEEP, len(seeds), 4)
    return lambda run: judge(run.algo, [7] * len(seeds)).ret.reshape(len(seeds), -1).mean(axis=1)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("family", FLOWS)
def test_what_acting_records_is_what_the_likelihood_says(family):
    """The ratio is exactly 1 before the first update, whatever the number of steps."""

    @quick
    def differences(state):
        out = {}
        for steps in (1, 2, 4, 8, 20):
            _, actor = reinflow.actor(replace(CONFIG, net=FLOWS[family], walk=Walk(steps)), SPEC)
            _, record = actor.play(state, OBS, KEY)
            judged = actor.judge(state.actor.params, state, OBS, record.chain, jnp.zeros(B, jnp.int32))
            out[steps] = judged.log_prob - record.log_prob[:, 0], record.log_prob
        return out

    _, state = begun(reinflow.make, replace(CONFIG, net=FLOWS[family]), factor=3.0)
    for steps, (difference, recorded) in differences(state).items():
        np.testing.assert_allclose(difference, 0, atol=1e-5, err_msg=str(steps))
        assert np.ptp(recorded) > 0.01


@pytest.mark.parametrize("family", FLOWS)
def test_the_first_ratio_of_an_update_is_one(family):
    ratio, new = first_ratio(*begun(reinflow.make, replace(CONFIG, net=FLOWS[family], noise_decay=10)))
    np.testing.assert_allclose(ratio, 1, atol=1e-5)
    assert new.iteration == 1


def still(params, state, given, walk):
    """The noiseless chain's states by plain Euler steps, from given starts."""
    x, states = given.noises(KEY, B, 0)[0], []
    for t in np.arange(walk.steps) / walk.steps:
        times = jnp.full(B, t)
        x = (x + given.denoise(params, OBS.state, x, times, jnp.full(B, 1 / walk.steps)).out / walk.steps).clip(-1, 1)
        states.append(x)
    return jnp.stack(states, axis=1)


@pytest.mark.parametrize("family", FLOWS)
def test_without_noise_chains_are_eulers(family):
    """Judged, a policy follows its flow; so does one that explores with next to no noise."""
    cfg = replace(CONFIG, net=FLOWS[family], std_min=1e-6, std_max=1e-6)
    algorithm, state = begun(reinflow.make, cfg)
    given, actor = reinflow.actor(cfg, SPEC)
    states = still(state.actor.params["policy"], state, given, cfg.walk)
    np.testing.assert_allclose(actor.best(state, OBS, KEY), states[:, -1], atol=1e-6)
    np.testing.assert_allclose(algorithm.act_eval(state, OBS, (), KEY).action, states[:, -1], atol=1e-6)
    np.testing.assert_allclose(actor.play(state, OBS, KEY)[1].chain[:, 1:], states, atol=1e-4)
    assert np.ptp(algorithm.act_eval(state, OBS, (), jax.random.key(5)).action - states[:, -1]) > 0.01  # a random start


def test_noise_stays_in_its_bounds():
    cfg = replace(CONFIG, std_min=0.05, std_max=0.3)
    given, _ = reinflow.actor(cfg, SPEC)
    player = reinflow.Player(cfg, given)
    _, state = begun(reinflow.make, cfg)
    chains = jax.random.normal(KEY, (B, 5, 2, 2))
    for factor, low, high in ((0.0, 0.1224, 0.1225), (3.0, 0.05, 0.3), (1e4, 0.05, 0.3)):
        params = {**state.actor.params, "noise": grown(state.actor.params["noise"], factor)}
        std = chain.moves(player.step(params, OBS.state, cfg.std_max), chains).std
        assert low <= std.min() + 1e-6
        assert std.max() <= high + 1e-6
    assert std.max() - std.min() > 0.2499


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


def slopes(cfg, what, factor=2.0):
    """Gradient of a mean of `Judged` for a chain that the policy has walked -> (of the policy, of the noise net)."""
    _, actor = reinflow.actor(cfg, SPEC)
    _, state = begun(reinflow.make, cfg, factor=factor)
    _, record = actor.play(state, OBS, KEY)
    level = jnp.zeros(B, jnp.int32)
    slope = quick(jax.grad(lambda p: what(actor.judge(p, state, OBS, record.chain, level)).mean()))
    grads = slope(state.actor.params)
    return grads["policy"]["denoiser"]["params"], grads.get("noise")


def largest(tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("noise_input", ["time", "state", "step"])
def test_the_noise_net_trains_the_states_encoder_and_nothing_else_of_the_policy(noise_input):
    """The entropy depends on the noise alone, which reads the time's embedding as it is."""
    net = Net("reflow", **SMALL, cond=(5, 4))
    policy, noise = slopes(replace(CONFIG, net=net, noise_input=noise_input), lambda judged: judged.entropy)
    code = policy.pop("MLP_0")
    assert largest(policy) == 0
    assert largest(code) > 1e-5
    assert largest(noise) > 1e-4
    assert ("Embed_0" in noise["params"]) == (noise_input == "step")


def test_beyond_its_range_l_gives_no_gradient():
    low, high = slopes(replace(CONFIG, log_prob_max=-3.0), lambda judged: judged.log_prob)
    assert largest((low, high)) == 0
    policy, noise = slopes(CONFIG, lambda judged: judged.log_prob)
    assert min(largest(policy), largest(noise)) > 1e-3
    _, actor = reinflow.actor(replace(CONFIG, log_prob_max=-3.0), SPEC)
    _, state = begun(reinflow.make, CONFIG)
    _, record = actor.play(state, OBS, KEY)
    judged = actor.judge(state.actor.params, state, OBS, record.chain, jnp.zeros(B, jnp.int32))
    np.testing.assert_array_equal(record.log_prob, -3.0)
    np.testing.assert_array_equal(judged.clamped, 1.0)


def test_the_noises_upper_bound_falls_and_stays():
    bound = lambda i: float(reinflow.noise_bound(jnp.asarray(i), 0.1, 0.24, 1000))  # noqa: E731
    np.testing.assert_allclose([bound(i) for i in (0, 350)], 0.24, rtol=1e-6)
    np.testing.assert_allclose([bound(i) for i in (1000, 1001, 5000)], 0.198, rtol=1e-6)
    np.testing.assert_allclose(bound(675), (0.24 + 0.198) / 2, rtol=1e-5)
    cfg = replace(CONFIG, noise_decay=10)
    player = reinflow.Player(cfg, reinflow.actor(cfg, SPEC)[0])
    assert player.bound(jnp.int32(0)) == np.float32(0.24)
    np.testing.assert_allclose(player.bound(jnp.int32(10)), 0.198, rtol=1e-6)
    assert reinflow.Player(CONFIG, player.given).bound(jnp.int32(10)) == 0.24


def test_noise_that_is_not_learned():
    cfg = replace(CONFIG, noise_fixed="vp", std_min=0.05, std_max=0.2)
    t = np.linspace(0, 1, 5)
    np.testing.assert_allclose(
        reinflow.fixed_std(cfg, 5, 0.2), np.clip(np.sqrt(0.2 * t * (1 - t)), 0.05, 0.2), rtol=1e-5
    )
    np.testing.assert_allclose(reinflow.fixed_std(replace(cfg, noise_fixed="lin"), 5, 0.2), np.maximum(0.1 * t, 0.05))
    np.testing.assert_allclose(reinflow.fixed_std(replace(cfg, noise_fixed="min"), 1, 0.2), [0.05])
    constant = replace(CONFIG, noise="constant", std_min=0.15)
    _, state = begun(reinflow.make, constant)
    assert set(state.actor.params) == {"policy"}
    chains = jax.random.normal(KEY, (B, 5, 2, 2))
    for given, learned in ((constant, 0), (replace(CONFIG, noise_steps=3, noise_fixed="min"), 3), (CONFIG, 4)):
        _, state = begun(reinflow.make, given)
        player = reinflow.Player(given, reinflow.actor(given, SPEC)[0])
        std = chain.moves(player.step(state.actor.params, OBS.state, 0.24), chains).std
        np.testing.assert_allclose(std[:, : 4 - learned], given.std_min, rtol=1e-6)
        assert not learned or (jnp.ptp(std[:, 4 - learned :], axis=0) > 1e-4).all()


def test_acting_draws_with_a_floor_that_the_likelihood_does_not_know():
    """The ratio is 1 all the same: l is always that of the likelihood."""
    cfg = replace(CONFIG, sampling_std=0.5, std_max=0.2, net=replace(CONFIG.net, limit=0.0))
    given, actor = reinflow.actor(cfg, SPEC)
    player = reinflow.Player(cfg, given)
    _, state = begun(reinflow.make, cfg)
    start, normals = given.noises(KEY, B, 4)
    step = player.step(state.actor.params, OBS.state, cfg.std_max)
    _, record = actor.play(state, OBS, KEY)
    law = chain.moves(step, record.chain)
    moved = (record.chain[:, 1:] - law.mean)[:, :-1]
    np.testing.assert_allclose(moved, 0.5 * jnp.clip(normals, -3, 3)[:, :-1], atol=1e-5)
    np.testing.assert_allclose(record.log_prob[:, 0], reinflow.log_prob(law, record.chain, cfg)[0], atol=1e-5)
    assert law.std.max() <= 0.2
    assert jnp.abs(record.chain[:, -1]).max() <= 1
    np.testing.assert_array_equal(record.chain[:, 0], start)


def test_a_policy_is_no_distance_from_itself():
    given, _ = reinflow.actor(CONFIG, SPEC)
    _, state = begun(reinflow.make, replace(CONFIG, bc_weight=0.1))
    start = given.noises(KEY, B, 0)[0]

    def distance(params, frozen, start, other):
        tuned, old = (given.step(p, OBS.state, CONFIG.walk) for p in (params, frozen))
        return reinflow.w2(tuned, old, 4, start, other)

    params = state.actor.params["policy"]
    assert distance(params, state.frozen, start, start) == 0
    assert distance(params, state.frozen, start, 0 * start) > 1e-3
    assert distance(grown(params, 1.1), state.frozen, start, start) > 1e-4
    both = jax.grad(distance, argnums=(0, 1))(grown(params, 1.1), state.frozen, start, start)
    assert largest(both[0]) > 1e-4
    assert largest(both[1]) == 0


@pytest.mark.parametrize("kind", [{"regulariser": "w2", "w2_start": "zero"}, {"regulariser": "bc"}])
def test_the_regulariser_holds_the_policy_back(kind):
    """Its gradient, from a policy that has moved away from the frozen one, points back."""
    cfg = replace(CONFIG, bc_weight=0.5, **kind)
    _, actor = reinflow.actor(cfg, SPEC)
    algorithm, state = begun(reinflow.make, cfg)
    apart = {**state.actor.params, "policy": grown(state.actor.params["policy"], 1.1)}
    value, grads = quick(jax.value_and_grad(actor.penalty))(apart, state, OBS, KEY)
    inwards = jax.tree.map(lambda now, old: now - old, apart["policy"], state.frozen)
    along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads["policy"], inwards)), strict=True))
    assert along > 0
    assert value > actor.penalty(state.actor.params, state, OBS, KEY)
    new, metrics = quick(algorithm.update)(state, a_rollout(algorithm, state), KEY)
    assert np.isfinite(metrics["policy/bc"])
    close(new.frozen, state.frozen, rtol=0)
    assert largest(jax.tree.map(lambda a, b: a - b, new.actor.params, state.actor.params)) > 1e-6


@pytest.mark.parametrize(
    ("obs_dim", "action_dim", "net", "policy", "noise", "critic"),
    [
        (11, 3, Net("reflow"), 553_020, 6_732, 134_913),
        (17, 6, Net("reflow"), 568_392, 7_896, None),
        (376, 17, Net("reflow"), 797_300, 33_732, None),
        (60, 9, Net("shortcut", (256,) * 3, "mish", cond=(32, 16), combine="concat"), None, None, 147_457),
    ],
    ids=["hopper", "walker2d", "humanoid", "kitchen"],
)
def test_networks_have_the_published_sizes(obs_dim, action_dim, net, policy, noise, critic):
    algorithm = reinflow.make(Config(net=net), spec := EnvSpec("sizes", (obs_dim,), action_dim, chunk=4))
    start = Start(identity_norm(obs_dim, action_dim), 1)
    state = jax.eval_shape(lambda key: algorithm.init(key, start), jax.random.key(0))
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))  # noqa: E731
    sizes = [count(state.actor.params["policy"]), count(state.actor.params["noise"]), count(state.critic.params)]
    for ours, published in zip(sizes, (policy, noise, critic), strict=True):
        assert published in (None, ours), spec


@pytest.fixture(scope="module")
def parent():
    return poor(FLOWS["reflow"])


FINE = replace(CONFIG, batch_size=256, epochs=5, **RATES)
SEEDS = (0, 3)


@pytest.fixture(scope="module")
def learnt(parent):
    """(algorithm, runs, metrics) of two seeds."""
    algorithm = reinflow.make(FINE, SWEEP.spec)
    return algorithm, *learn(algorithm, parent, SEEDS)


def test_times_that_differ_between_acting_and_judging_show(parent):
    """The grid of one and the likelihood of the other: a trained policy's ratio is not 1."""
    actors = [reinflow.actor(replace(CONFIG, walk=Walk(2, grid)), SWEEP.spec)[1] for grid in ("left", "inclusive")]
    _, state = begun(reinflow.make, replace(CONFIG, walk=Walk(2)), SWEEP.spec, factor=1.0, parent=parent)
    obs, level = seen(jax.random.uniform(KEY, (B, 4), minval=-1, maxval=1)), jnp.zeros(B, jnp.int32)
    record = actors[1].play(state, obs, KEY)[1]
    for actor, same in zip(actors, (False, True), strict=True):
        log_ratio = actor.judge(state.actor.params, state, obs, record.chain, level).log_prob - record.log_prob[:, 0]
        assert bool(abs(jnp.exp(log_ratio).mean() - 1) < 1e-5) == same, log_ratio


def test_it_improves_a_poor_policy(learnt):
    algorithm, runs, metrics = learnt
    judge = judge_of(algorithm, SEEDS)
    assert (judge(runs[0]) < -2).all()
    assert (judge(runs[-1]) > -1.35).all()
    for metric in metrics[1:]:
        np.testing.assert_allclose(metric["policy/first_ratio"], 1, atol=1e-5)
        np.testing.assert_array_equal(metric["policy/steps_done"], 1)


@pytest.mark.parametrize("steps", [1, 2])
def test_it_improves_it_in_few_steps(parent, steps):
    _, metrics = learn(reinflow.make(replace(FINE, walk=Walk(steps)), SWEEP.spec), parent, (0,))
    returns = [float(metric["episode/return"][0]) for metric in metrics[1:]]
    assert returns[-1] > returns[0] + 0.2, returns
    np.testing.assert_allclose(metrics[1]["policy/first_ratio"], 1, atol=1e-5)


def test_a_seed_alone_in_a_host_environment_learns_what_it_learns_beside_others_in_a_jitted_one(parent, learnt):
    algorithm, runs, _ = learnt
    world = envs.make("toy/pointmass", PLAN.num_envs, envs.Options(chunk=2, max_steps=30, host=True))
    run = begin(algorithm, parent, SEEDS[1:], world)
    program = online.hosted(algorithm, run, world, PLAN, parent.norm, 10 * PLAN.steps)
    *_, report = loop.train(program, run, 0, 10 * PLAN.steps)
    other = jax.tree.map(lambda x: x[1:], runs[1].algo.actor.params)
    close(report.run.algo.actor.params, other, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_is_refused():
    for options, message in (
        ({"net": Net("diffusion")}, "not diffusion"),
        ({"std_min": 0.0}, "0 < std_min 0.0"),
        ({"std_min": 0.3}, "std_max 0.24"),
        ({"log_prob_min": 60.0}, "log_prob_min 60.0"),
        ({"regulariser": "kl"}, "regulariser"),
        ({"noise_fixed": "cosine", "noise": "constant"}, "fixed noise"),
        ({"walk": Walk(-1)}, "-1"),
        ({"walk": Walk(4, "right")}, "time grid"),
    ):
        with pytest.raises(ConfigError, match=message):
            begun(reinflow.make, replace(CONFIG, **options))[0].act(begun(reinflow.make, CONFIG)[1], OBS, (), KEY)
    with pytest.raises(ConfigError, match="goals"):
        reinflow.make(CONFIG, SPEC._replace(goal_shape=(2,)))
