"""What holds of all goal-conditioned algorithms, and the invariants of each; toys whose answers are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algos
from algos import crl, hiql, ota, qrl
from algos import goal_conditioned as gc
from core import batches, dataset, loop
from core.config import ConfigError, UnknownName
from core.distributions import Categorical, Gaussian
from core.types import EnvSpec, Observation, Start
from tests.algos.contracts import close
from tests.algos.problems import random_dataset, same
from tests.algos.toward import SIZES, learn, learn_from_pictures

NAMES = ("gcbc", "gcivl", "gciql", "crl", "qrl", "hiql", "ota")
SPEC = EnvSpec("test", (3,), 2, (3,))
NORM = dataset.identity_norm(3, 2)
PICTURES = EnvSpec("test", (9, 9, 3), 0, (9, 9, 3), num_actions=4)


def small(name, **changes):
    Config = algos.load(name).Config
    return replace(Config(), **{k: v for k, v in {**SIZES, **changes}.items() if hasattr(Config(), k)})


def begin(name, spec=SPEC, **changes):
    """(module, options, record, a state whose targets differ from its networks, a batch)."""
    module, cfg = algos.load(name), small(name, **changes)
    algorithm = module.make(cfg, spec)
    norm = NORM if not spec.pixels else dataset.identity_norm(1, 0)
    state = jax.jit(algorithm.init)(jax.random.key(0), Start(norm))
    state = state._replace(target=jax.tree.map(lambda x: x + 0.1, state.target))
    data = batches.data(pictures() if spec.pixels else random_dataset(), norm)
    t = jax.jit(algorithm.sample)(data, jax.random.key(1))
    parts = module.parts(cfg, spec)
    return module, cfg, algorithm, state, gc.to_batch(parts.batch, norm, t, jax.random.key(2), cfg, spec)


def pictures():
    rng = np.random.default_rng(0)
    rows, lengths = 60, np.full(5, 11)
    state = rng.integers(0, 256, (rows, 9, 9, 3), np.uint8)
    nothing = np.zeros(rows, np.float32)
    return dataset.from_lengths(
        state, rng.integers(4, size=rows, dtype=np.int32), nothing, np.zeros(rows, bool), lengths
    )


@pytest.mark.parametrize("name", NAMES)
def test_one_program_pure_and_alone_as_among_seeds(name):
    algorithm = algos.load(name).make(small(name), SPEC)
    data, traces = batches.data(random_dataset(), NORM), []
    four = jax.jit(lambda run, data: traces.append(0) or loop.epoch(algorithm, 4)(run, data))
    run = loop.begin(algorithm, Start(NORM), (0, 1))
    once, metrics = four(run, data)
    assert same(once.algo, four(run, data)[0].algo)
    assert not same(once.algo, four(once, data)[0].algo)
    assert len(traces) == 1
    alone, _ = four(jax.tree.map(lambda x: x[1:], run), data)
    close(jax.tree.map(lambda x: x[1], once.algo), jax.tree.map(lambda x: x[0], alone.algo), rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(x).all() for x in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_key_is_used_twice(name):
    algorithm = algos.load(name).make(small(name), SPEC)
    data, key = batches.data(random_dataset(), NORM), jax.random.key(0)
    state = algorithm.init(jax.random.key(9), Start(NORM))
    with jax.debug_key_reuse(True):
        t = jax.jit(algorithm.sample)(data, jax.random.fold_in(key, 1))
        jax.jit(algorithm.update)(state, t, jax.random.fold_in(key, 2))
        jax.jit(algorithm.act)(state, t.obs, (), jax.random.fold_in(key, 3))


@pytest.mark.parametrize("name", ["gcivl", "ota"])
def test_states_and_goals_are_normalised_alike(name):
    """Shifted and scaled states with the matching norm give what plain states give without one."""
    shift, scale = np.array([5.0, -2.0, 0.5], np.float32), np.array([2.0, 0.1, 3.0], np.float32)
    plain = random_dataset()
    moved = plain._replace(state=plain.state * scale + shift)
    algorithm, key, found = algos.load(name).make(small(name), SPEC), jax.random.key(3), []
    for episodes, norm in ((plain, NORM), (moved, NORM._replace(state_shift=shift, state_scale=scale))):
        data = batches.data(episodes, norm)
        t = jax.jit(algorithm.sample)(data, key)
        state, _ = jax.jit(algorithm.update)(algorithm.init(key, Start(norm)), t, key)
        found.append(
            (state.net.params, algorithm.act_eval(state, t.obs, (), key).action, algorithm.goal_value(state, t.obs))
        )
    close(*found, rtol=1e-3, atol=2e-4)
    assert np.std(found[0][1]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_exploring_and_judged_actions(name):
    """Judged: the mode, whatever the key; at a temperature, drawn; exploring, of standard deviation 1 and clipped."""
    module = algos.load(name)
    algorithm = module.make(small(name), SPEC)
    state = algorithm.init(jax.random.key(0), Start(NORM))
    some = jnp.asarray(np.random.default_rng(0).normal(size=(500, 3)), jnp.float32)
    obs = Observation(some, some[::-1], jnp.zeros(500), jnp.zeros(500, jnp.int32))
    judged = [algorithm.act_eval(state, obs, (), jax.random.key(i)).action for i in range(2)]
    assert (judged[0] == judged[1]).all()
    warm = module.make(small(name, temperature=0.3), SPEC).act_eval(state, obs, (), jax.random.key(0)).action
    assert 0.2 < (warm - judged[0]).std() < 0.4
    explored = algorithm.act(state, obs, (), jax.random.key(0)).action
    assert np.abs(explored).max() == 1
    assert explored.std() > 0.5


@pytest.mark.parametrize("name", ["gcivl", "gciql", "hiql", "ota"])
def test_targets_follow_the_parameters_from_before_the_step(name):
    module, cfg, _algorithm, state, batch = begin(name)
    parts = module.parts(cfg, SPEC)
    new, _ = jax.jit(lambda s: gc.update_with(s, batch, parts, cfg, SPEC))(state)
    for key, old in state.target.items():
        jax.tree.map(
            lambda t, o, n: np.testing.assert_allclose(n, 0.005 * o + 0.995 * t, rtol=1e-5, atol=1e-7),
            old, state.net.params[key], new.target[key],
        )  # fmt: skip
    assert not same(new.net.params, state.net.params)


def slopes(name, spec=SPEC, **changes):
    """{part of the loss: networks that learn from it}."""
    module, cfg, _, state, batch = begin(name, spec, **changes)
    objective = gc.objective(module.parts(cfg, spec), cfg, spec)

    def losses(params):
        metrics = objective(params, state.net.params, state.target, batch)[1]
        return {name.removesuffix("/loss"): x for name, x in metrics.items() if name.endswith("/loss")}

    parts = list(jax.eval_shape(losses, state.net.params))
    slope = jax.jit(jax.grad(lambda params, share: sum(share[i] * losses(params)[x] for i, x in enumerate(parts))))
    found = {x: slope(state.net.params, jnp.eye(len(parts))[i]) for i, x in enumerate(parts)}
    learns = lambda tree: any(np.any(x != 0) for x in jax.tree.leaves(tree))  # noqa: E731
    return {part: {net for net, tree in nets.items() if learns(tree)} for part, nets in found.items()}


def test_what_learns_from_which_loss():
    assert slopes("qrl") == {
        "value": {"phi", "mix", "log_lambda"},
        "model": {"phi", "mix", "model"},
        "actor": {"actor"},
    }
    assert slopes("hiql") == {"value": {"value", "rep"}, "low": {"low"}, "high": {"high"}}
    assert slopes("hiql", low_rep_grad="always")["low"] == {"low", "rep"}
    ours = slopes("ota")
    assert ours == {"value": {"value", "rep"}, "option": {"option", "rep"}, "low": {"low"}, "high": {"high"}}


def test_pictures_train_the_representation_through_the_lower_policy():
    assert slopes("hiql", PICTURES, encoder="impala_debug")["low"] == {"low", "rep"}


def test_representations_have_one_length():
    _, cfg, _, state, batch = begin("hiql")
    nets = hiql.networks(cfg, SPEC)
    z = nets.rep.apply(state.net.params["rep"], 100 * batch.obs, batch.goal)
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), np.sqrt(cfg.rep_dim), rtol=1e-5)


def test_the_lower_policy_is_told_subgoals_of_that_length():
    """Whatever the upper policy names: its output scaled is the same subgoal."""
    _module, cfg, _algorithm, state, batch = begin("hiql")
    params = state.net.params
    high = params["high"]["params"]
    *_, last = sorted(high)
    louder = {**params, "high": {"params": {**high, last: jax.tree.map(lambda x: 7 * x, high[last])}}}
    play = hiql.play(hiql.networks(cfg, SPEC), SPEC)
    acted = [play(p, batch.obs, batch.goal, jax.random.key(0), 0.0) for p in (params, louder)]
    np.testing.assert_allclose(*acted, atol=1e-5)


def chain_values(states, steps, options, gamma=0.9, tau=0.5, sweeps=400):
    """V[state, goal] of a chain by `implicit_value` on a table, from pairs whose goal lies ahead.

    Args: options: success is where `steps` lead, and the goal is never the state itself.
    """
    state, aim = np.triu_indices(states, 1 if options else 0)
    after = np.minimum(state + steps, aim)
    reached = jnp.asarray((after if options else state) == aim, jnp.float32)

    def loss(table, target):
        value, now, following = (
            jnp.stack([t[s, aim]] * 2) for t, s in ((table, state), (target, state), (target, after))
        )
        return len(state) * gc.implicit_value(value, now, following, reached - 1, 1 - reached, gamma, tau)[0]

    table, step = jnp.zeros((states, states)), jax.jit(jax.grad(loss))
    for _ in range(sweeps):
        table = table - 0.5 * step(table, table)
    return np.asarray(table)


def test_the_values_fixed_point_on_a_chain():
    """-(1 - gamma^d) / (1 - gamma) at the distance d."""
    table = chain_values(12, 1, options=False)
    for s in range(12):
        for g in range(s, 12):
            assert table[s, g] == pytest.approx(-(1 - 0.9 ** (g - s)) / 0.1, abs=1e-3)


@pytest.mark.parametrize("n", [1, 3])
def test_the_fixed_point_of_options_counts_options(n):
    """-(1 - gamma^(ceil(d / n) - 1)) / (1 - gamma); with n = 1 that is one step less than the value of steps."""
    table = chain_values(12, n, options=True)
    for s in range(12):
        for g in range(s + 1, 12):
            assert table[s, g] == pytest.approx(-(1 - 0.9 ** (-(-(g - s) // n) - 1)) / 0.1, abs=1e-3)


def test_expectiles_weigh_the_sign_of_the_advantage_and_square_each_heads_error():
    value, target, following = jnp.array([[1.0], [3.0]]), jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])
    one = jnp.ones(1)
    loss, _ = gc.implicit_value(value, target, following, -one, one, 0.5, 0.9)
    # u = -1 + 0.5 * 4 - 1 = 0: weight 0.9; y = 1 and 2
    assert float(loss) == pytest.approx(0.9 * ((1 - 1) ** 2 + (2 - 3) ** 2))
    loss, _ = gc.implicit_value(value, target + 1, following, -one, one, 0.5, 0.9)
    assert float(loss) == pytest.approx(0.1)


def test_ddpg_bc_is_blind_to_the_critics_scale():
    mean, action = jnp.array([[0.2, -0.3], [0.5, 0.1]]), jnp.array([[0.0, 0.1], [0.3, -0.2]])

    def slope(scale):
        return jax.grad(lambda m: gc.ddpg_bc(Gaussian(m, 0.0), action, scale * jnp.square(m).sum(1), 0.0)[0])(mean)

    np.testing.assert_allclose(slope(1.0), slope(1e3), rtol=1e-4)


def test_advantage_weights_stop_at_100_after_the_temperature():
    pi, action = Gaussian(jnp.zeros((1, 2)), 0.0), jnp.zeros((1, 2))
    loss, _ = gc.awr(pi, action, jnp.array([50.0]), 3.0)
    assert float(loss) == pytest.approx(100 * np.log(2 * np.pi))


def test_contrast():
    """log 2 at logits 0; the order of a batch is nothing; each row's own goal is the only positive one."""
    zero = jnp.zeros((2, 6, 4))
    assert float(crl.contrast(zero, zero)[0]) == pytest.approx(np.log(2))
    phi, psi = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 6, 4)), jnp.float32)
    order = jnp.array([3, 1, 5, 0, 2, 4])
    loss, metrics = crl.contrast(phi, psi)
    again, _ = crl.contrast(phi[:, order], psi[:, order])
    assert float(loss) == pytest.approx(float(again), rel=1e-5)
    logits = np.einsum("eid,ejd->eij", phi, psi) / 2
    own = np.log1p(np.exp(-logits[:, range(6), range(6)])).sum()
    wanted = (own + np.log1p(np.exp(logits)).sum() - np.log1p(np.exp(logits[:, range(6), range(6)])).sum()) / 72
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    assert float(metrics["own_logit"]) == pytest.approx(logits[:, range(6), range(6)].mean(), rel=1e-5)


def test_a_longer_reach_costs_qrl_more_where_steps_are_short():
    """L_near is 0 for steps of at most 1, and its price falls then."""
    _, cfg, _, state, batch = begin("qrl")
    params = {**state.net.params, "log_lambda": jnp.float32(0.5)}
    nets = qrl.networks(cfg, SPEC)
    still = batch._replace(next_obs=batch.obs)
    grads, metrics = jax.grad(qrl.value_loss, has_aux=True)(params, params, still, nets, cfg)
    assert float(metrics["near_loss"]) == 0
    assert float(grads["log_lambda"]) == pytest.approx(0.05 * np.exp(0.5), rel=1e-5)


@pytest.mark.parametrize("name", ["gciql", "crl", "qrl", "ota"])
def test_pictures_and_discrete_actions(name):
    changes = {"encoder": "impala_debug", "crop": 0.5, "actor_loss": "awr", "hidden": (8,), "actor_hidden": (8,)}
    _, _, algorithm, state, _ = begin(name, PICTURES, **changes)
    data = batches.data(pictures(), dataset.identity_norm(1, 0))
    t = jax.jit(algorithm.sample)(data, jax.random.key(1))
    new, metrics = jax.jit(algorithm.update)(state, t, jax.random.key(4))
    assert not same(new.net.params, state.net.params)
    assert all(np.isfinite(x) for x in metrics.values())
    for act in (algorithm.act, algorithm.act_eval):
        action = act(new, t.obs, (), jax.random.key(5)).action
        assert action.dtype == jnp.int32
        assert set(np.unique(action)) <= {0, 1, 2, 3}


def test_crops_are_the_same_for_all_pictures_of_a_row():
    cfg = small("ota", crop=1.0, encoder="impala_debug")
    data = batches.data(pictures(), dataset.identity_norm(1, 0))
    t = jax.jit(ota.make(cfg, PICTURES).sample)(data, jax.random.key(1))
    t = t._replace(next_obs=t.obs, extras={**t.extras, "states": {**t.extras["states"], "option_end": t.obs.state}})
    norm = dataset.identity_norm(1, 0)
    seen = gc.to_batch(ota.Batch, norm, t, jax.random.key(2), cfg, PICTURES)
    assert (seen.obs == seen.next_obs).all()
    assert (seen.obs == seen.option_end).all()
    assert (seen.obs != t.obs.state).any()
    left = gc.to_batch(ota.Batch, norm, t, jax.random.key(2), cfg, PICTURES, ("option_end",))
    assert (left.option_end == t.obs.state).all()
    assert (left.obs == seen.obs).all()
    half = [
        bool(
            (
                gc.to_batch(ota.Batch, norm, t, jax.random.key(i), replace(cfg, crop=0.5), PICTURES).obs != t.obs.state
            ).any()
        )
        for i in range(20)
    ]
    assert 3 < sum(half) < 17  # whole batches or none


def test_categorical():
    pi = Categorical(jnp.log(jnp.array([[0.2, 0.5, 0.3]])))
    np.testing.assert_allclose(pi.log_prob(jnp.array([2])), np.log(0.3), rtol=1e-5)
    assert pi.mode() == 1
    drawn = Categorical(jnp.tile(pi.logits, (100_000, 1))).sample(jax.random.gumbel(jax.random.key(0), (100_000, 3)))
    np.testing.assert_allclose(np.bincount(drawn) / 1e5, [0.2, 0.5, 0.3], atol=0.01)
    cold = [gc.sample_at(pi, jax.random.key(i), 0.01)[0] for i in range(20)]
    assert set(map(int, cold)) == {1}


@pytest.mark.parametrize(
    ("name", "changes", "spec", "message"),
    [
        ("gcbc", {}, {"goal_shape": (0,)}, "has no goal"),
        ("hiql", {}, {"goal_shape": (2,)}, "has goals \\(2,\\)"),
        ("gciql", {}, {"num_actions": 4}, "take awr"),
        ("gcivl", {"crop": 0.5}, {}, "no pictures"),
        ("crl", {"temperature": -1.0}, {}, "temperature"),
        ("gcbc", {"last_alone": True}, {}, "history"),
        ("qrl", {"latent": 12}, {}, "multiple of 8"),
        ("hiql", {"high_random": 1.5}, {}, "sum to 1"),
        ("hiql", {"subgoal_steps": 0}, {}, "subgoal_steps"),
        ("ota", {"abstraction": 0}, {}, "abstraction"),
        ("ota", {"crop_options": False}, {}, "crop above 0"),
        ("ota", {"high_discount": 2.0}, {}, "high_discount"),
        ("gcbc", {}, {"chunk": 4}, "without chunks"),
    ],
)
def test_refused(name, changes, spec, message):
    with pytest.raises(ConfigError, match=message):
        algos.load(name).make(replace(small(name), **changes), SPEC._replace(**spec))


def test_unknown_choices_name_the_nearest():
    with pytest.raises(UnknownName, match="ddpgbc"):
        algos.load("gciql").make(small("gciql", actor_loss="ddpg"), SPEC)


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("gcbc", 1_500),
        ("gcivl", 1_500),
        ("gciql", 1_500),
        ("crl", 700),
        ("hiql", 1_500),
        pytest.param("qrl", 500, marks=pytest.mark.slow),
        pytest.param("ota", 1_500, marks=pytest.mark.slow),
    ],
)
def test_finds_the_way_across_a_room(name, updates):
    """From episodes that wander between other goals."""
    assert learn(name, updates) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcivl", "hiql"])
def test_finds_the_way_through_a_maze_in_pictures(name):
    """By discrete moves, an encoder for each network, four tasks of five or all; cloning (gcbc) finds no way."""
    assert learn_from_pictures(name, 2_000) > 0.7
