"""What ReinFlow, DPPO and Gaussian PPO share, with a policy whose densities are known: losses, minibatches, rules."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algos import chain_ppo
from algos.chain_ppo import Actor, Batch, Config, Judged, Record
from core import batches, chain, chunk_policy, critics
from core.chunk_policy import PolicyNet
from core.config import ConfigError
from core.critics import Network
from core.types import EnvSpec, Start, Transition
from tests.algos.chunked import KEY, NORM, close, quick, seen

SPEC = EnvSpec("toy", (2,), 2)
NET = PolicyNet("reflow", hidden=(4,), residual=False, time_dim=4)
GIVEN = chunk_policy.policy(NET, SPEC)
CONFIG = Config(batch_size=24, epochs=2, net=NET, critic=Network((8,), "tanh", residual=False), actor_lr=1e-2)
CRITIC = critics.of_observations(CONFIG.critic, GIVEN)
T, B, J, STD = 6, 4, 3, 0.2


def gaussians(**changes):
    """J levels: state j + 1 of the chain is N(mean_j, STD^2) in both numbers, whatever came before."""

    def start(key, start):
        return {"mean": 0.1 * jax.random.normal(key, (J, 1, 2))}, {"mean": jnp.ones((J, 1, 2))}, start.norm

    def log_prob(params, states):
        return chain.log_density(states[:, 1:], params["mean"], STD).sum(axis=(2, 3))

    def play(state, obs, key):
        states = state.actor.params["mean"] + STD * jax.random.normal(key, (len(obs.step), J, 1, 2))
        states = jnp.concatenate([jnp.zeros_like(states[:, :1]), states], axis=1)
        return states[:, -1], Record(states, log_prob(state.actor.params, states))

    def judge(params, state, obs, states, level):
        value = jnp.take_along_axis(log_prob(params, states), level[:, None], axis=1)[:, 0]
        return Judged(value, params["mean"].sum() * jnp.ones_like(value), jnp.zeros_like(value))

    best = lambda state, obs, key: jnp.broadcast_to(state.actor.params["mean"][-1], (len(obs.step), 1, 2))  # noqa: E731
    penalty = lambda params, state, obs, key: jnp.square(params["mean"] - state.frozen["mean"]).mean()  # noqa: E731
    made = Actor(J, start, play, best, judge, lambda level: 0.1 + 0 * level, lambda a, level: a, penalty)
    return made._replace(**changes)


def made(actor=None, spec=SPEC, **options):
    return chain_ppo.make(replace(CONFIG, **options), spec, GIVEN, actor or gaussians())


def begun(algorithm):
    return quick(lambda key: algorithm.init(key, Start(NORM, B)))(KEY)


def sloped(state, batch, actor=None, cfg=CONFIG):
    """((loss, metrics), gradients) of the actor."""
    actor = actor or gaussians()
    batch = chain_ppo.shaped(batch, actor, cfg)
    loss = lambda params: chain_ppo.actor_loss(params, state, batch, KEY, actor, cfg)  # noqa: E731
    return quick(jax.value_and_grad(loss, has_aux=True))(state.actor.params)


def played(algorithm, state, obs=None, key=KEY, **changes):
    """A rollout [T, B] in which nothing follows from anything: random states and rewards, no ends."""
    rng = np.random.default_rng(1)
    states = jnp.asarray(rng.normal(size=(T + 1, B, 2)), jnp.float32) if obs is None else obs
    out = quick(algorithm.act)(state, seen(states[:-1].reshape(T * B, -1)), (), key)
    action, extras = jax.tree.map(lambda x: x.reshape(T, B, *x.shape[1:]), (out.action, out.extras))
    now, after = seen(states[:-1]), seen(states[1:])
    never, reward = jnp.zeros((T, B), bool), jnp.asarray(rng.normal(size=(T, B)), jnp.float32)
    t = Transition(now, action, reward, after._replace(step=now.step + 1), never, never, extras, jnp.zeros((T, B)))
    return t._replace(**changes)


@pytest.fixture(scope="module")
def setting():
    """(algorithm, state, rollout, what an update makes of it), the update compiled."""
    algorithm = made()
    algorithm = algorithm._replace(update=quick(algorithm.update))
    state = begun(algorithm)
    t = played(algorithm, state)
    return algorithm, state, t, algorithm.update(state, t, KEY)


def a_batch(state, size=32, seed=0):
    rng = np.random.default_rng(seed)
    states = rng.normal(0, STD, (size, J + 1, 1, 2)) + 0.1
    numbers = (jnp.asarray(x, jnp.float32) for x in (rng.normal(2, 3, size), *rng.normal(size=(2, size))))
    level = jnp.asarray(rng.integers(J, size=size), jnp.int32)
    obs = seen(jnp.asarray(rng.normal(size=(size, 2)), jnp.float32))
    batch = Batch(obs, jnp.asarray(states, jnp.float32), jnp.zeros(size), level, *numbers)
    return batch._replace(log_prob=gaussians().judge(state.actor.params, state, obs, batch.chain, level).log_prob)


def test_the_loss_equals_its_equations(setting):
    _, state, *_ = setting
    rng, batch = np.random.default_rng(0), a_batch(state)
    batch = batch._replace(log_prob=batch.log_prob + rng.normal(0, 0.2, 32))
    actor = gaussians(clip=lambda level: 0.05 * (level + 1), shape_advantage=lambda a, level: a * 0.9**level)
    cfg = replace(CONFIG, entropy_weight=0.3, bc_weight=0.2)
    (loss, metrics), _ = sloped(state, batch, actor, cfg)

    mean, level = np.asarray(state.actor.params["mean"]), np.asarray(batch.level)
    z = (np.asarray(batch.chain)[np.arange(32), level + 1] - mean[level]) / STD
    log_prob = (-0.5 * z**2 - np.log(STD * np.sqrt(2 * np.pi))).sum(axis=(1, 2))
    ratio, a = np.exp(log_prob - np.asarray(batch.log_prob)), np.asarray(batch.advantage)
    a, eps = (a - a.mean()) / a.std(ddof=1) * 0.9**level, 0.05 * (level + 1)
    policy = np.maximum(-a * ratio, -a * np.clip(ratio, 1 - eps, 1 + eps)).mean()
    np.testing.assert_allclose(loss, policy - 0.3 * mean.sum() + 0.2 * ((mean - 1) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["policy/clipped"], (np.abs(ratio - 1) > eps).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-3)


def test_before_the_first_step_the_gradient_is_that_of_the_policy(setting):
    _, state, *_ = setting
    batch, actor = a_batch(state), gaussians()
    (_, metrics), grads = sloped(state, batch)
    a = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std(ddof=1) + 1e-8)
    score = lambda p: -(a * actor.judge(p, state, batch.obs, batch.chain, batch.level).log_prob).mean()  # noqa: E731
    wanted = quick(jax.grad(score))(state.actor.params)
    np.testing.assert_allclose(grads["mean"], wanted["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose([metrics["policy/ratio"], metrics["policy/loss"]], [1, 0], atol=1e-6)
    assert abs(metrics["policy/kl"]) < 1e-6
    assert metrics["policy/clipped"] == 0


@pytest.mark.parametrize(("sign", "moves"), [(1.0, False), (-1.0, True)])
def test_a_ratio_beyond_the_clip_gives_no_gradient_where_that_is_better(setting, sign, moves):
    _, state, *_ = setting
    batch = a_batch(state)
    batch = batch._replace(log_prob=batch.log_prob - 0.5, advantage=sign * jnp.ones(32))  # rho = e^0.5
    cfg = replace(CONFIG, normalize_advantage=False)
    _, grads = sloped(state, batch, cfg=cfg)
    assert bool(jnp.abs(grads["mean"]).max() > 1e-3) == moves


def test_advantages_are_standardised_or_not(setting):
    _, state, *_ = setting
    batch = a_batch(state)
    other = batch._replace(advantage=5 + 7 * batch.advantage, log_prob=batch.log_prob + 0.05)
    batch = batch._replace(log_prob=other.log_prob)

    loss = lambda batch, cfg: sloped(state, batch, cfg=cfg)[0][0]  # noqa: E731
    np.testing.assert_allclose(loss(batch, CONFIG), loss(other, CONFIG), rtol=1e-4, atol=1e-6)
    plain = replace(CONFIG, normalize_advantage=False)
    np.testing.assert_allclose(loss(batch, plain), -batch.advantage.mean() * np.exp(-0.05), rtol=1e-4)


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_the_value_loss_equals_its_equations(setting, clip):
    _, state, *_ = setting
    batch, cfg = a_batch(state), replace(CONFIG, value_clip=clip)
    loss, _ = chain_ppo.critic_loss(state.critic.params, state.norm, batch, CRITIC, cfg)
    v, old, ret = (np.asarray(x) for x in (CRITIC.apply(state.critic.params, NORM, batch.obs), batch.value, batch.ret))
    moved = np.clip(v, old - clip, old + clip) if clip else v
    np.testing.assert_allclose(loss, np.maximum((v - ret) ** 2, (moved - ret) ** 2).mean() / 2, rtol=1e-5)


@pytest.mark.parametrize(("items", "duplicates", "whole"), [(12, 1, 12), (12, 3, 36), (10, 1, 8), (3, 2, 4)])
def test_an_epoch_visits_each_item_as_often_as_asked(items, duplicates, whole):
    rows = np.asarray(batches.minibatches(KEY, items, 4, 3, duplicates))
    assert rows.shape == (3 * whole // 4, 4)
    counts = np.stack([np.bincount(epoch, minlength=items) for epoch in rows.reshape(3, -1)])
    assert counts.max() <= duplicates
    assert (counts.sum(1) == whole).all()
    assert whole < items * duplicates or (counts == duplicates).all()
    assert not np.array_equal(*rows.reshape(3, -1)[:2])


def test_an_update_moves_what_it_should(setting):
    _, state, t, (new, metrics) = setting
    np.testing.assert_allclose(metrics["policy/first_ratio"], 1, atol=1e-6)
    assert metrics["policy/steps_done"] == 1
    assert new.iteration == 1
    assert jnp.abs(new.actor.params["mean"] - state.actor.params["mean"]).max() > 1e-3
    np.testing.assert_array_equal(new.frozen["mean"], state.frozen["mean"])
    assert new.rewards.seen.count == pytest.approx(T * B, rel=1e-4)
    assert t.extras.log_prob.shape == (T, B, J)


def test_a_minibatch_in_parts_gives_the_same_update(setting):
    """Advantages are standardised and shaped over the whole minibatch."""
    _, state, t, _ = setting
    options = {"bc_weight": 0.1, "entropy_weight": 0.01, "value_clip": 0.1}
    centred = gaussians(shape_advantage=lambda a, level: a - jnp.median(a))
    whole, parts = (
        quick(made(centred, microbatch=size, **options).update)(state, t, KEY) for size in (CONFIG.batch_size, 4)
    )
    close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("batch", "size"), [(24, 24), (50_000, 1_000), (1_250, 625), (1_999, 1_999)])
def test_on_a_cpu_about_a_thousand_items_are_taken_at_once(batch, size):
    assert chain_ppo.at_once(replace(CONFIG, batch_size=batch)) == size
    assert chain_ppo.at_once(replace(CONFIG, batch_size=batch, microbatch=batch)) == batch


def changed(one, two):
    return [not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)]


def test_the_critic_warms_up_alone_and_the_actors_schedule_begins_afterwards(setting):
    """Rates by iteration rise in one from 0, and are 0 again after four; the actor's begin in iteration 2."""
    _, state, t, _ = setting
    update = quick(made(critic_warmup=2, lr_cycle=4, lr_warmup=1, actor_lr_min=0.0, critic_lr_min=0.0).update)
    for iteration, moves in enumerate([(False, False), (False, True), (False, True), (True, True), (True, False)]):
        new, _ = update(state._replace(iteration=jnp.int32(iteration)), t, KEY)
        for net, now, before in zip(moves, (new.actor, new.critic), (state.actor, state.critic), strict=True):
            assert set(changed(now.params, before.params)) == {net}, iteration
        assert any(changed(new.actor.opt, state.actor.opt)) == (iteration >= 2)


def test_later_minibatches_are_left_out_when_the_policy_moved_too_far(setting):
    _, state, t, _ = setting
    far = made(actor_lr=1.0, target_kl=0.5)
    new, metrics = quick(far.update)(state, t, KEY)
    steps = CONFIG.epochs * T * B * J // CONFIG.batch_size
    # the first step finds the policy where it was, the second measures how far it went and is the last
    np.testing.assert_allclose(metrics["policy/steps_done"], 2 / steps, rtol=1e-5)
    assert [int(x) for x in jax.tree.leaves((new.actor.opt, new.critic.opt)) if x.ndim == 0] == [2, 2]


def numpy_advantages(cfg, reward, v, after, terminated, truncated):
    out, later = np.zeros((T, B)), 0.0
    for i in reversed(range(T)):
        ends = terminated[i] | (truncated[i] if cfg.time_limit == "terminate" else False)
        delta = reward[i] + cfg.discount * ~ends * after[i] - v[i]
        out[i] = later = delta + cfg.discount * cfg.lam * ~(terminated[i] | truncated[i]) * later
    return out


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminate"])
def test_the_first_value_loss_is_that_of_the_advantages(setting, time_limit):
    _, state, *_ = setting
    cfg = replace(CONFIG, time_limit=time_limit, batch_size=T * B * J, epochs=1, scale_rewards=False)
    cfg = replace(cfg, reward_shift=0.1, success_bonus=0.5, discount=0.9)
    algorithm, rng = chain_ppo.make(cfg, SPEC, GIVEN, gaussians()), np.random.default_rng(2)
    terminated, truncated, success = rng.random((3, T, B)) < 0.2
    t = played(algorithm, state, terminated=jnp.asarray(terminated), truncated=jnp.asarray(truncated & ~terminated))
    executed = rng.integers(1, 4, (T, B))  # steps of each chunk
    after = t.next_obs._replace(step=t.obs.step + executed)
    t = t._replace(success=jnp.asarray(success, jnp.float32), next_obs=after)
    new, metrics = quick(algorithm.update)(state, t, KEY)
    assert new.rewards.seen.count == state.rewards.seen.count  # what is not scaled is not measured
    v, after = (np.asarray(CRITIC.apply(state.critic.params, NORM, obs)) for obs in (t.obs, t.next_obs))
    reward = np.asarray(t.reward) + 0.1 * executed + 0.5 * success
    advantage = numpy_advantages(cfg, reward, v, after, terminated, np.asarray(t.truncated))
    np.testing.assert_allclose(metrics["value/loss"], (advantage**2).mean() / 2, rtol=1e-5)


def starts_and_ends(seed, begins):
    """(steps of observations, ends of the task, cuts) [T, B]; of the last steps, only that of environment 2 ends."""
    ends = np.random.default_rng(seed).random((2, T, B)) < 0.25
    ends[:, -1] = [[False, False, True, False], [False] * 4]
    over, step = ends.any(axis=0), np.zeros((T, B), np.int32)
    step[0] = np.where(begins, 0, 3)
    for i in range(1, T):
        step[i] = np.where(over[i - 1], 0, step[i - 1] + 1)
    return step, ends[0], ends[1] & ~ends[0]


def test_rewards_are_scaled_by_returns_that_go_on_from_rollout_to_rollout(setting):
    """Of two rollouts; in the second, environment 2 begins after its end, 0 anew without one, and two go on."""
    algorithm, state, *_ = setting
    judged = quick(lambda state, t: chain_ppo.advantages(state, t, CRITIC, CONFIG)[1])
    ret, mean, var, count, rewards = np.zeros(B), 0.0, 1.0, 1e-4, 5 * np.random.default_rng(7).normal(size=(2, T, B))
    begins = np.array([[True] * B, [True, False, True, False]])
    for seed, reward in enumerate(rewards):
        step, terminated, truncated = starts_and_ends(seed, begins[seed])
        over, sums = terminated | truncated, []
        assert over[:-1].any()
        if seed:
            assert (ret != 0).tolist() == [True, True, False, True]
        t = played(algorithm, state, reward=jnp.asarray(reward, jnp.float32))
        t = t._replace(obs=t.obs._replace(step=jnp.asarray(step)), next_obs=t.next_obs._replace(step=step + 1))
        t = t._replace(terminated=jnp.asarray(terminated), truncated=jnp.asarray(truncated))
        ret = np.where(begins[seed], 0, ret)
        for now, ended in zip(reward, over, strict=True):
            sums.append(ret := CONFIG.discount * ret + now)
            ret = np.where(ended, 0, ret)
        total, squares = count + T * B, count * (var + mean**2) + np.square(sums).sum()
        mean = (count * mean + np.sum(sums)) / total
        var, count = (squares - total * mean**2) / (total - 1), total

        v, after = (np.asarray(CRITIC.apply(state.critic.params, NORM, obs)) for obs in (t.obs, t.next_obs))
        wanted = numpy_advantages(CONFIG, reward / np.sqrt(var), v, after, terminated, truncated)
        np.testing.assert_allclose(judged(state, t), wanted, rtol=1e-4, atol=1e-5)
        state, _ = algorithm.update(state, t, KEY)
        np.testing.assert_allclose(state.rewards.ret, ret, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(list(state.rewards.seen), [mean, var, count], rtol=1e-4)


def test_a_bound_shortens_gradients(setting):
    """One step from all items: AdamW's first moment is a tenth of the gradient, of which the direction stays."""
    _, state, t, _ = setting
    free, bound = (made(max_grad_norm=norm, epochs=1, batch_size=T * B * J) for norm in (0.0, 1e-3))
    free, bound = (quick(x.update)(start, t, KEY)[0] for x, start in ((free, state), (bound, begun(bound))))
    for one, other in ((free.actor, bound.actor), (free.critic, bound.critic)):
        whole, short = (optax.tree.get(net.opt, "mu") for net in (one, other))
        length = float(optax.tree.norm(whole))
        assert length > 1e-3
        close(short, jax.tree.map(lambda x, by=1e-4 / length: by * x, whole), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("time_limit", "value"), [("bootstrap", 1 / (1 - 0.8)), ("terminate", (1.8 + 1.0) / 2)])
def test_a_time_limit_that_ends_the_task_makes_values_smaller(time_limit, value):
    """A reward of 1 for ever, of which the clock cuts off a piece after every two steps; all states look alike."""
    options = {"critic_warmup": 10**6, "critic_lr": 3e-3, "epochs": 8, "lam": 1.0, "discount": 0.8}
    algorithm = made(time_limit=time_limit, scale_rewards=False, batch_size=T * B * J, **options)
    state = begun(algorithm)
    cut = jnp.broadcast_to((jnp.arange(T) % 2 == 1)[:, None], (T, B))
    t = played(algorithm, state, jnp.zeros((T + 1, B, 2)), reward=jnp.ones((T, B)), truncated=cut)
    many = quick(lambda state: jax.lax.scan(lambda s, _: algorithm.update(s, t, KEY), state, None, 300))
    state, _ = many(state)
    ours = CRITIC.apply(state.critic.params, NORM, seen(jnp.zeros((1, 2))))[0]
    np.testing.assert_allclose(ours, value, rtol=0.02)


def test_rewards_in_other_units_make_the_same_update(setting):
    algorithm, state, t, (new, _) = setting
    other, _ = algorithm.update(state, t._replace(reward=1000 * t.reward), KEY)
    np.testing.assert_allclose(other.actor.params["mean"], new.actor.params["mean"], rtol=1e-3, atol=1e-4)


def test_the_regulariser_pulls(setting):
    _, state, t, (new, metrics) = setting
    assert "policy/bc" not in metrics
    pulled, metrics = quick(made(bc_weight=100.0).update)(state, t, KEY)
    distance = [float(jnp.square(s.actor.params["mean"] - s.frozen["mean"]).mean()) for s in (state, new, pulled)]
    assert distance[2] < distance[0] - 0.01
    assert distance[2] < distance[1]
    assert distance[2] < metrics["policy/bc"] < distance[0]


def test_actions_are_the_ends_of_chains_in_the_tasks_units(setting):
    algorithm, state, *_ = setting
    norm = NORM._replace(action_shift=jnp.asarray([0.1, -0.1]), action_scale=jnp.asarray([0.5, 9.0]))
    state, obs = state._replace(norm=norm), seen(jnp.zeros((50, 2)))
    out = algorithm.act(state, obs, (), KEY)
    np.testing.assert_allclose(out.action, np.clip(norm.raw_action(out.extras.chain[:, -1, 0]), -1, 1), rtol=1e-6)
    assert jnp.abs(out.extras.chain[:, -1]).max() < 1 <= jnp.abs(out.action).max()
    best = algorithm.act_eval(state, obs, (), KEY).action
    mean = norm.raw_action(state.actor.params["mean"][-1])
    np.testing.assert_allclose(best, jnp.broadcast_to(jnp.clip(mean, -1, 1), (50, 2)), rtol=1e-6)


def test_what_cannot_be_is_refused(setting):
    _, state, t, _ = setting
    with pytest.raises(ConfigError, match="72 items, less than one minibatch of 73"):
        made(batch_size=73).update(state, t, KEY)
    made(batch_size=73, duplicates=2)
    for options in (
        {"epochs": 0},
        {"batch_size": 1},
        {"clip": 0.0},
        {"lam": 1.1},
        {"discount": 2.0},
        {"bc_weight": -1.0},
        {"microbatch": 5},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            made(**options)
    with pytest.raises(ConfigError, match="no regulariser"):
        made(gaussians(penalty=None), bc_weight=0.1)
    with pytest.raises(ConfigError, match="warmup"):
        made(lr_cycle=3, lr_warmup=3)
