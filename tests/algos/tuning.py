"""What the tests of ReinFlow and DPPO share: first states, and fine-tuning a poorly cloned policy of a point mass."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

import envs
from algos import chain_bc, chain_ppo
from core import batches, dataset, online, sampling
from core.critics import Network
from core.dataset import identity_norm
from core.types import EnvSpec, Start
from tests.algos.chunked import KEY, quick, seen

SPEC = EnvSpec("toy", (3,), 2, chunk=2)
SMALL = {"hidden": (16, 16), "activation": "tanh", "residual": False, "time_dim": 4}
CRITIC = Network((16,), "tanh", residual=False)
B = 16
OBS = seen(jax.random.normal(jax.random.key(1), (B, 3)))


def largest(tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


def grown(params, factor):
    """Parameters as of a network that has learned something: what it says depends on the time."""
    return jax.tree.map(lambda x: factor * x, params)


def products(program):
    """The precisions of all products in a jaxpr, also in its loops, branches and calls."""
    inner = lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))  # noqa: E731
    found = []
    for eqn in getattr(program, "jaxpr", program).eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(eqn.params["precision"])
        for part in filter(inner, jax.tree.leaves(eqn.params, is_leaf=inner)):
            found += products(part)
    return found


def check_precision(algorithm, actor, cfg, state, obs):
    """Acting and judging multiply with all digits: with fewer, as GPUs do by default, they would disagree."""
    act = jax.make_jaxpr(lambda state, key: algorithm.act(state, obs, (), key))(state, KEY)
    size = len(obs.step)
    blank = jax.eval_shape(lambda state: algorithm.act(state, obs, (), KEY).extras, state)
    chains, number, level = jnp.zeros(blank.chain.shape), jnp.zeros(size), jnp.zeros(size, jnp.int32)
    batch = chain_ppo.Batch(obs, chains, number, level, number, number, number)
    judge = jax.make_jaxpr(lambda params: chain_ppo.actor_loss(params, state, batch, KEY, actor, cfg))
    layers = len(cfg.net.hidden) + 1
    for program in (act, judge(state.actor.params)):
        precisions = products(program)
        assert len(precisions) >= layers
        assert set(precisions) == {(jax.lax.Precision.HIGHEST,) * 2}


def begun(make, cfg, spec=SPEC, factor=2.0, parent=None):
    """The first state of an algorithm.

    Args: factor: of the policy's random parameters.
    """
    norm = parent.norm if parent else identity_norm(math.prod(spec.obs_shape), spec.action_dim)
    state = quick(lambda key: make(cfg, spec).init(key, Start(norm, B, parent)))(KEY)
    actor, frozen = (grown(x, factor) for x in (state.actor.params, state.frozen))
    return state._replace(actor=state.actor._replace(params=actor), frozen=frozen)


# --- learning: a point mass, whose best return is about -1.0 ---

SWEEP = envs.make("toy/pointmass", 16, envs.Options(chunk=2, max_steps=30))
PLAN = online.Plan(16, 32, chunk=2)
RATES = {"actor_lr": 1e-3, "actor_lr_min": 1e-3, "critic_lr": 2e-3, "critic_lr_min": 2e-3}


def poor(net, updates=600):
    """The last state of cloning a controller that steers with much noise."""
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


def begin(algorithm, parent, seeds, world):
    stacked = jax.tree.map(lambda x: jnp.stack([x] * len(seeds)), parent)
    return online.begin(algorithm, Start(parent.norm, PLAN.num_envs, stacked), seeds, world, PLAN)


def learn(algorithm, parent, seeds, epochs=4):
    """Fine-tune by epochs of 10 iterations -> (runs, from the first state on; metrics of the epochs)."""
    runs, metrics = [begin(algorithm, parent, seeds, SWEEP)], []
    epoch = quick(online.epoch(algorithm, SWEEP, PLAN, parent.norm, 10 * PLAN.steps))
    for _ in range(epochs):
        run, metric = epoch(runs[-1])
        runs.append(run)
        metrics.append(metric)
    return runs, metrics


def check_progress(metrics, gain):
    """The return has risen by more than `gain` since the first epoch; ratios are 1 before each first step."""
    returns = [float(metric["episode/return"][0]) for metric in metrics]
    assert returns[-1] > returns[0] + gain, returns
    for metric in metrics:
        np.testing.assert_allclose(metric["policy/first_ratio"], 1, atol=1e-5)
