"""What the benchmark of fine-tuning counts, divides and hands over; PyTorch's losses are ours."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import chain_ppo
from benchmarks import chains
from benchmarks.chains import DPPO, R1, R4, S4, Sizes
from benchmarks.contenders import PEERS, Peer, Seen
from core import batches, critics, optim
from core.critics import Network
from core.types import EnvSpec

SPEC = EnvSpec("tiny", (11,), 3, chunk=4)
SIZES = Sizes(envs=2, chunks=6, part=2, batch=60, calls=2)
PUBLISHED = chains.published()


def tiny(name, **changes):
    """A contender's algorithm and config with small networks."""
    algo, cfg = PUBLISHED[name]
    small = replace(cfg.net, hidden=(8, 8, 8), cond=(16,) if cfg.net.cond else ())
    return algo, replace(cfg, net=small, critic=Network(hidden=(8, 8, 8)), **changes)


def made(name, **changes):
    return chains.tuning(*tiny(name, **changes), SPEC, SIZES)


def test_flops_by_hand():
    """Three rows through weights of 2 x 3 and 3 x 1: forward 9 products a row, backward 18."""
    params = {"kernel": jnp.ones((2, 3)), "head": {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}}
    assert chains.flops(params, 3) == 2 * 3 * (9 + 18)


def test_published_sizes():
    """20,000 chunks make four minibatches of 50,000 an epoch, and twenty gradient steps."""
    chunks = Sizes().envs * Sizes().chunks
    for name, items in {R4: 1, S4: 1, R1: 1, DPPO: PUBLISHED[DPPO][1].tuned}.items():
        cfg = PUBLISHED[name][1]
        assert (chunks * items * cfg.duplicates // cfg.batch_size, cfg.epochs) == (4, 5)
        assert (cfg.batch_size, cfg.net.hidden) == (Sizes().batch, (512, 512, 512))
    assert [PUBLISHED[name][1].denoising.steps or 4 for name in (R4, S4, R1)] == [4, 4, 1]


@pytest.mark.parametrize(("name", "rows"), [(R4, 4), (R1, 1), (DPPO, 1)])
def test_an_epoch_takes_the_steps_that_it_is_divided_by(name, rows):
    one = made(name)
    levels = one.actor.levels
    cfg, key = one.cfg, jax.random.key(0)
    taken = batches.minibatches(key, 12 * levels, cfg.batch_size, cfg.epochs, cfg.duplicates)
    assert taken.shape == (one.steps, 60) == (2, 60)
    assert one.rows == rows


def test_the_rollout_is_the_policys_own():
    """Its recorded log-probabilities are those that the update gives its chains."""
    one = made(R4)
    obs, record = jax.tree.map(lambda x: x.reshape(12, *x.shape[2:]), (one.rollout.obs, one.rollout.extras))
    judged = one.actor.judge(one.state.actor.params, one.state, obs, record.chain, jnp.zeros(12, int))
    np.testing.assert_allclose(judged.log_prob, record.log_prob[:, 0], atol=1e-5)


def test_an_iteration_is_put_together_round_by_round():
    found = Seen({
        "products, a": np.array([10.0, 10.0]), "products, b": np.array([1.0, 1.0]), "advantages": np.array([1.0, 2.0]),
        "x: epoch": np.array([9.0, 18.0]), "x: rollout": np.array([5.0, 6.0]),
    })  # fmt: skip
    chains.derive(found, "x", SimpleNamespace(steps=4, flops=4e9), epochs=5)
    np.testing.assert_allclose(found["x: gradient step"], [2, 4])
    np.testing.assert_allclose(found["x: update"], [41, 82])
    np.testing.assert_allclose(found["x: iteration"], [46, 88])
    np.testing.assert_allclose(found["x: gradient step, of products, a"], [20, 10])


def test_all_rows_at_tiny_sizes(monkeypatch):
    monkeypatch.setattr(chains, "QUICK", SIZES)
    monkeypatch.setattr(chains, "SMALL", ("gaussian_ppo",))
    monkeypatch.setattr(chains, "product_loop", lambda *size, **products: lambda: 1.0)
    same = {name: tiny(R1 if name != DPPO else DPPO) for name in PUBLISHED}  # compiled once
    monkeypatch.setattr(chains, "published", lambda: same)
    few = {name: families for name, families in chains.families().items() if name in ("gaussian", "reflow, K=2")}
    monkeypatch.setattr(chains, "families", lambda: few)
    table = {row["what"]: row for row in chains.measure(1, quick=True, with_peers=False)}
    assert all(row["value"] > 0 for row in table.values())
    per_contender = ("rollout", "update", "iteration", "gradient step", "gradient step, of products", "acting")
    for name in (R4, S4, R1, DPPO):
        assert [sum(what.startswith(f"{name}: {part}") for what in table) for part in per_contender[:3]] == [1, 1, 1]
        assert sum(what.startswith(f"{name}: ") for what in table) == len(per_contender)
    assert {what for what in table if what.startswith(("cpu", "act_eval"))} == {
        "cpu preset, gaussian_ppo",
        *(f"act_eval, {name}, batch {size}" for name in ("gaussian", "reflow, K=2") for size in (1, 64)),
    }
    assert {"sampling, K=4 over K=20", "iteration, K=1 over K=4", "iteration, ReinFlow R over DPPO"} < set(table)


def ours(one, path, steps):
    """Losses (critic, actor) before each of some steps on all items at once, of what was exported."""
    cfg, state, net = one.cfg, one.state, critics.of_observations(one.cfg.critic, one.given)
    with np.load(path) as file:
        written = {name: jnp.asarray(file[name]) for name in ("log_prob", "advantage", "ret")}
    count, levels = written["log_prob"].shape
    row, level = jnp.divmod(jnp.arange(count * levels), levels)
    flat = lambda x: x.reshape(count, *x.shape[2:])[row]  # noqa: E731
    obs, chain = jax.tree.map(flat, one.rollout.obs), flat(one.rollout.extras.chain)
    advantage, ret = written["advantage"][row], written["ret"][row]
    batch = chain_ppo.Batch(obs, chain, written["log_prob"][row, level], level, advantage, ret, ret)
    batch = chain_ppo.shaped(batch, one.actor, cfg)
    actor_tx, critic_tx = (optim.adam(1.0, weight_decay=decay) for decay in (cfg.actor_decay, cfg.critic_decay))
    lr = {name: chain_ppo.rate(getattr(cfg, f"{name}_lr"), getattr(cfg, f"{name}_lr_min"), cfg)(state.iteration)
          for name in ("actor", "critic")}  # fmt: skip
    policy, values, losses = state.actor, state.critic, []

    def critic_loss(params):
        return cfg.value_weight * chain_ppo.critic_loss(params, state.norm, batch, net, cfg)[0]

    def actor_loss(params):
        return chain_ppo.actor_loss(params, state, batch, jax.random.key(0), one.actor, cfg)[0]

    for _ in range(steps):
        of_value, grads = jax.value_and_grad(critic_loss)(values.params)
        values = optim.apply(critic_tx, values, grads, lr["critic"])
        of_policy, grads = jax.value_and_grad(actor_loss)(policy.params)
        policy = optim.apply(actor_tx, policy, grads, lr["actor"])
        losses.append([of_value / cfg.value_weight, of_policy])
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="`make bench` builds the peers' environment")
@pytest.mark.parametrize("name", [R4, DPPO])
@pytest.mark.parametrize("part", [0, 4])
def test_torch_takes_the_same_steps(name, part, tmp_path):
    """Decay, an entropy's weight and long steps: what is left out would show."""
    options = {"actor_lr": 0.01, "actor_lr_min": 0.01, "critic_lr": 0.01, "critic_lr_min": 0.01}
    one = made(name, actor_decay=0.1, critic_decay=0.1, **options)
    path = tmp_path / "made.npz"
    chains.export(one, path)
    with Peer(chains.TORCH[name], PEERS, path=str(path), what="losses", threads=1, part=part) as peer:
        theirs = np.array([peer() for _ in range(6)])
    expected = ours(one, path, 6)
    np.testing.assert_allclose(theirs, expected, rtol=1e-3, atol=1e-5)
    assert np.all(np.abs(expected[-1] - expected[0]) > 1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="`make bench` builds the peers' environment")
@pytest.mark.parametrize("name", [R4, DPPO])
@pytest.mark.parametrize(("what", "sizes"), [("update", {"size": 60, "part": 20}), ("acting", {"size": 5, "calls": 2})])
def test_torch_runs(name, what, sizes, tmp_path):
    chains.export(made(name), tmp_path / "made.npz")
    with Peer(chains.TORCH[name], PEERS, path=str(tmp_path / "made.npz"), what=what, threads=1, **sizes) as peer:
        assert peer() > 0
