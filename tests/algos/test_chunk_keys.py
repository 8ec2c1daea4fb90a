"""No learner of chunk policies uses a random key twice."""

import jax
import jax.numpy as jnp
import pytest

import algos
from core import batches
from core.chunk_policy import Policy, PolicyNet
from core.critics import Network
from core.types import Start, Transition
from tests.algos.chunked import NORM, SPEC, B, match_episodes, seen

TUNED = {"bc_weight": 0.1, "microbatch": 3, "batch_size": 6, "epochs": 1}
OPTIONS = {"reinflow": TUNED, "dppo": TUNED, "gaussian_ppo": {"epochs": 1}, "dawr": {"buffer": 2, "replay_ratio": 4.0}}
LEARNERS = [("chain_bc", family) for family in ("reflow", "shortcut", "meanflow", "diffusion")]
LEARNERS += [("reinflow", "reflow"), ("dppo", "diffusion"), ("gaussian_ppo", "gaussian"), ("fql", "reflow")]
LEARNERS += [("idql", "diffusion"), ("dql", "diffusion"), ("dawr", "diffusion")]


def uses(algo, family):
    """All that an algorithm does with keys, once, by a key each."""
    module = algos.load(algo)
    options = {"batch_size": 6, **OPTIONS.get(algo, {})}
    if algo != "chain_bc":
        options["critic"] = Network((4,), "relu", residual=False)
    net = PolicyNet(family, hidden=(4,), residual=False, time_dim=4, levels=3)
    if algo == "dppo":
        options["tuned"] = 2
    algorithm = module.make(module.Config(net=net, **options), SPEC)
    data, obs = batches.data(match_episodes(2), NORM), seen(jnp.zeros((B, 2)))

    def rollout(out):
        """Two steps of B environments."""
        zero = jnp.zeros((2, B))
        both = seen(jnp.zeros((2, B, 2)))
        action, extras = jax.tree.map(lambda x: jnp.stack([x, x]), (out.action, out.extras))
        return Transition(both, action, zero, both, zero > 0, zero > 0, extras, zero)

    def use(start, played, judged, drawn, updated):
        state = algorithm.init(start, Start(NORM, B))
        out, _ = algorithm.act(state, obs, (), played), algorithm.act_eval(state, obs, (), judged)
        batch = algorithm.sample(data, drawn) if algorithm.sample else rollout(out)
        algorithm.update(state, batch, updated)

    return use


@pytest.mark.parametrize(("algo", "family"), LEARNERS)
def test_no_key_is_used_twice(algo, family):
    """What is checked is what was traced; as nothing is returned, nothing of it is compiled."""
    use = uses(algo, family)
    with jax.debug_key_reuse(True):
        jax.jit(use)(*map(jax.random.key, range(5)))


def test_a_key_that_is_used_twice_shows(monkeypatch):
    """In what is not returned, in a loop, and deep in an algorithm: what a chain starts from, and its noise."""

    def noises(self, key, size, steps):
        return jax.random.normal(key, (size, *self.shape)), jax.random.normal(key, (size, steps, *self.shape))

    monkeypatch.setattr(Policy, "noises", noises)
    others, tuning = [jax.random.key(i) for i in (1, 2, 3, 4)], uses("reinflow", "reflow")
    twice = (
        lambda key: [None for _ in (jax.random.normal(key), jax.random.normal(key))],
        lambda key: jax.lax.scan(lambda x, _: (x + jax.random.normal(key), None), 0.0, None, 2)[1],
        lambda key: tuning(others[0], key, *others[1:]),
    )
    for use in twice:
        with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
            jax.jit(use)(jax.random.key(0))
