"""Chunk, history, noise and end at success: both forms against each other and against plain stepping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.env import HostEnv
from core.rollout import JaxBatch
from core.types import EnvSpec
from envs import toys
from envs.host import HostVector
from envs.jax_wrappers import ActionNoise as JaxNoise
from envs.jax_wrappers import wrap_jax
from envs.registry import Options
from envs.render import RenderError
from envs.toys.base import follow, start
from envs.toys.host import HostFromJax
from envs.wrappers import ActionNoise, Wrapper, where, wrap_host

B = 6


class Echo:
    """A task whose state is the action that was executed; the clock ends it."""

    def __init__(self, max_steps=1000):
        self.spec = EnvSpec("test/echo", (2,), 2, max_steps=max_steps)

    def reset(self, key, task):
        obs = start(jnp.zeros(2))
        return obs, obs

    def step(self, state, action, key):
        return follow(self.spec, state, action, action.sum())


class CountingSim:
    """A simulator in NumPy: state = steps so far; success at step `wins` (any later step does not count)."""

    def __init__(self, wins=3, ends=0, success="last"):
        self.spec, self.wins, self.ends = EnvSpec("test/count", (1,), 1, max_steps=10, success=success), wins, ends

    def reset(self, seed, task):
        self.count, self.calls = 0, getattr(self, "calls", 0)
        return np.zeros(1, np.float32), np.zeros(0, np.float32)

    def step(self, action):
        self.count, self.calls = self.count + 1, self.calls + 1
        won = float(self.count == self.wins)
        return np.float32([self.count]), float(self.count), self.count == self.ends, won

    def close(self): ...


class CountingEnv:
    """`CountingSim` in JAX."""

    def __init__(self, wins=3, ends=0, success="last"):
        self.spec, self.wins, self.ends = EnvSpec("test/count", (1,), 1, max_steps=10, success=success), wins, ends

    def reset(self, key, task):
        obs = start(jnp.zeros(1))
        return obs, obs

    def step(self, state, action, key):
        count = state.state + 1
        return follow(self.spec, state, count, count[0], count[0] == self.ends, count[0] == self.wins)


class Watched(Wrapper):
    """Counts the primitive steps that reach the slots."""

    def reset(self, seed, task=None):
        self.moved = np.zeros(self.num_envs, int)
        return super().reset(seed, task)

    def step(self, action, active=None):
        self.moved += self._active(active)
        return super().step(action, active)


def counting_pair(options, **kwargs):
    """The same counting task with host and with jitted wrappers, both behind `HostEnv`."""
    host = wrap_host(HostVector(partial(CountingSim, **kwargs), 2), options)
    return host, HostFromJax(JaxBatch(wrap_jax(CountingEnv(**kwargs), options), 2))


def assert_same(a, b, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def play(env, actions, actives=None, seed=3):
    """The reset observation and the TimeSteps of a list of actions."""
    actives = actives or [None] * len(actions)
    return env.reset(seed), [env.step(a, live) for a, live in zip(actions, actives, strict=True)]


def draw_actions(spec, count, seed=0):
    shape = (count, B, *spec.action_shape)
    return list(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32))


def test_defaults_add_no_layer():
    env = toys.build("match")
    assert wrap_jax(env, Options()) is env
    host = HostFromJax(JaxBatch(env, B))
    assert wrap_host(host, Options()) is host


@pytest.mark.parametrize(
    ("options", "action_shape", "obs_shape"),
    [
        (Options(chunk=4), (4, 2), (2,)),
        (Options(history=3), (2,), (6,)),
        (Options(chunk=2, history=2, noise=0.1), (2, 2), (4,)),
    ],
)
def test_specs_agree(options, action_shape, obs_shape):
    env = toys.build("pointmaze")
    host = wrap_host(HostFromJax(JaxBatch(env, B)), options)
    assert isinstance(host, HostEnv)
    assert host.num_envs == B
    assert host.spec == wrap_jax(env, options).spec
    assert (host.spec.action_shape, host.spec.obs_shape) == (action_shape, obs_shape)
    assert host.spec.goal_shape == obs_shape  # goals are states here
    assert host.spec._replace(chunk=0, history=1, obs_shape=(2,), goal_shape=(2,)) == env.spec
    assert toys.make("pixels", 1, Options(history=2)).spec.obs_shape == (12, 12, 6)
    assert toys.make("frozenlake", 1, Options(chunk=3)).spec.action_shape == (3,)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pointmaze", Options(chunk=4, history=3)),
        ("pointmaze", Options(history=3)),
        ("match", Options(chunk=4)),
        ("pixels", Options(history=3)),
    ],
)
def test_forms_agree(name, options):
    """Episodes of 10 steps cut chunks of 4 in the middle; some slots stand still at some steps."""
    env = toys.build(name, max_steps=10)
    host = wrap_host(HostFromJax(JaxBatch(env, B)), options)
    jitted = HostFromJax(JaxBatch(wrap_jax(env, options), B))
    actions = draw_actions(host.spec, 14 if options.chunk else 28)
    actives = [None, None, *(np.random.default_rng(1).random((len(actions) - 2, B)) < 0.7)]
    a, b = play(host, actions, actives), play(jitted, actions, actives)
    assert_same(a, b, atol=1e-6)
    assert sum(ts.truncated.sum() for ts in a[1]) > B
    for obs, live, ts in zip([a[0], *(t.obs for t in a[1])], actives, a[1], strict=False):
        if live is not None:  # who stands still repeats its observation
            idle, before = (jax.tree.map(lambda x, live=live: x[~live], x) for x in (ts, obs))
            assert_same(idle.obs, before)
            assert_same(idle.final_obs, before)
            assert not any(x.any() for x in idle[2:])


def test_chunk_equals_its_steps():
    env, length = toys.build("pointmaze", max_steps=10), 4
    plain = HostFromJax(JaxBatch(env, B))
    chunked = wrap_host(HostFromJax(JaxBatch(env, B)), Options(chunk=length))
    actions = draw_actions(chunked.spec, 3)
    first, coarse = play(chunked, actions)
    # the third chunk is cut to two steps by the time limit
    fine = play(plain, [a[:, h] for a in actions for h in range(length)][:10])[1]
    assert_same(first, plain.reset(3))
    for ts, parts in zip(coarse, (fine[:4], fine[4:8], fine[8:]), strict=True):
        total = sum(p.reward for p in parts)
        np.testing.assert_allclose(ts.reward, total, rtol=1e-6)
        np.testing.assert_allclose(ts.final_obs.reward, total, rtol=1e-6)
        np.testing.assert_array_equal(ts.final_obs.state, parts[-1].final_obs.state)
        np.testing.assert_array_equal(ts.obs.state, parts[-1].obs.state)
        np.testing.assert_array_equal(ts.success, parts[-1].success)
    assert coarse[-1].truncated.all()
    assert [ts.final_obs.step[0] for ts in coarse] == [4, 8, 10]
    assert not coarse[-1].obs.reward.any()


def test_an_end_inside_a_chunk_stops_it():
    """An end at sub-step 2 of 4 executes exactly two actions, in both forms."""
    sims = []

    def factory():
        sims.append(CountingSim(ends=2))
        return sims[-1]

    host = wrap_host(Watched(HostVector(factory, 2)), Options(chunk=4))
    jitted = counting_pair(Options(chunk=4), ends=2)[1]
    action = np.zeros((2, 4, 1), np.float32)
    for env in (host, jitted):
        env.reset(0)
        ts = env.step(action)
        np.testing.assert_array_equal(ts.final_obs.step, 2)
        np.testing.assert_array_equal(ts.final_obs.state, 2)
        np.testing.assert_array_equal(ts.reward, 1 + 2)
        assert ts.terminated.all()
        np.testing.assert_array_equal(ts.obs.step, 0)
    np.testing.assert_array_equal(host.env.moved, 2)
    assert [sim.calls for sim in sims[-2:]] == [2, 2]
    host.step(action, np.array([True, False]))
    assert [sim.calls for sim in sims[-2:]] == [4, 2]
    idle = host.step(action, np.zeros(2, bool))
    assert not any(x.any() for x in idle[2:])
    assert [sim.calls for sim in sims[-2:]] == [4, 2]


@pytest.mark.parametrize(("rule", "expected"), [("any", [1, 0, 0]), ("last", [0, 0, 0])])
def test_success_of_a_chunk_follows_the_task(rule, expected):
    """The goal holds at step 3 alone: inside the first chunk, and not at its end."""
    for env in counting_pair(Options(chunk=4), wins=3, success=rule):
        env.reset(0)
        assert [env.step(np.zeros((2, 4, 1), np.float32)).success[0] for _ in range(3)] == expected


def test_end_at_success():
    for options, steps in ((Options(end_at_success=True), 3), (Options(end_at_success=True, chunk=2), 2)):
        host, jitted = counting_pair(options, wins=3)
        actions = [np.zeros((2, *host.spec.action_shape), np.float32)] * (2 * steps)
        a, b = play(host, actions), play(jitted, actions)
        assert_same(a, b)
        assert [bool(ts.terminated.all()) for ts in a[1]] == 2 * ([False] * (steps - 1) + [True])
        last = a[1][steps - 1]
        assert (last.final_obs.state == 3).all()
        assert (last.final_obs.step == 3).all()
        assert last.success.all()
        assert not any(x.any() for x in last.obs)


def test_success_at_the_time_limit_ends_the_episode_once():
    host, jitted = counting_pair(Options(end_at_success=True), wins=10)
    actions = [np.zeros((2, 1), np.float32)] * 10
    a, b = play(host, actions), play(jitted, actions)
    assert_same(a, b)
    assert a[1][-1].terminated.all()
    assert not a[1][-1].truncated.any()
    plain, ending = HostVector(partial(SeededSim, wins=10), 2), HostVector(partial(SeededSim, wins=10), 2)
    after = [play(env, actions)[1][-1].obs for env in (plain, wrap_host(ending, Options(end_at_success=True)))]
    assert_same(*after)


def test_end_at_success_moves_on_by_one_episode():
    """After an early end the slot's next episode is the one that a full episode leads to, workers or not."""
    starts = []
    for workers, ends in ((0, 0), (2, 0), (0, 3)):
        vector = HostVector(partial(SeededSim, ends=ends), 3, workers)
        env = wrap_host(vector, Options(end_at_success=not ends))
        starts.append([env.reset(5).state, *(env.step(np.zeros((3, 1))).obs.state for _ in range(6))])
        env.close()
    np.testing.assert_array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[0], starts[2])
    assert len(np.unique([starts[0][i] for i in (0, 3, 6)])) == 9


class SeededSim(CountingSim):
    """`CountingSim` whose state is its seed plus the count."""

    def reset(self, seed, task):
        super().reset(seed, task)
        self.seed = seed % 100_000
        return np.float32([self.seed]), np.zeros(0, np.float32)

    def step(self, action):
        state, *rest = super().step(action)
        return state + self.seed, *rest


def test_history_is_the_last_states():
    env, length = toys.build("pointmaze", max_steps=5), 3
    plain = HostFromJax(JaxBatch(env, B))
    stacked = HostFromJax(JaxBatch(wrap_jax(env, Options(history=length)), B))
    actions = draw_actions(env.spec, 12)
    obs, fine = play(plain, actions)
    first, coarse = play(stacked, actions)
    past = [obs.state] * length
    np.testing.assert_array_equal(first.state, np.concatenate(past, -1))
    for raw, ts in zip(fine, coarse, strict=True):
        past = [*past[1:], raw.final_obs.state]
        np.testing.assert_array_equal(ts.final_obs.state, np.concatenate(past, -1))
        if raw.truncated.all():
            past = [raw.obs.state] * length
        np.testing.assert_array_equal(ts.obs.state, np.concatenate(past, -1))
        np.testing.assert_array_equal(ts.obs.goal, np.concatenate([raw.obs.goal] * length, -1))


def ramp(t):
    return (1 - np.exp(-0.01 * t)) * np.sin(t)


def test_jitted_noise_has_its_law():
    sigma, envs = 0.2, 10_000

    @jax.jit
    def spread():
        """Standard deviation [kind, T] of the executed action around the intended 0.1."""
        intended, rows = jnp.full((envs, 2), 0.1), []
        for kind in ("ramp", "iid"):
            batch = JaxBatch(JaxNoise(Echo(), sigma, kind), envs)

            def one(state, _, batch=batch):
                state, ts = batch.step(state, intended)
                return state, (jnp.sqrt(jnp.square(ts.final_obs.state - 0.1).mean()), ts.final_obs.state.mean())

            rows.append(jax.lax.scan(one, batch.reset(0)[0], None, 101 if kind == "ramp" else 3)[1])
        return rows

    (ramped, mean), (iid, _) = jax.device_get(spread())
    assert ramped[0] == 0  # no noise at the reset
    for t in (1, 2, 10, 50, 100):
        assert ramped[t] == pytest.approx(abs(ramp(t)) * sigma, rel=0.03)
    np.testing.assert_allclose(iid, sigma, rtol=0.03)
    np.testing.assert_allclose(mean, 0.1, atol=0.01)


def test_host_noise_has_its_law():
    env = HostFromJax(JaxBatch(Echo(), 200))
    action = np.full((200, 2), 0.1, np.float32)
    for kind, scale in (("ramp", ramp), ("iid", np.ones_like)):
        noisy = ActionNoise(env, 0.2, kind)
        noise = np.array([ts.final_obs.state - 0.1 for ts in play(noisy, [action] * 80)[1]])  # [T, B, A]
        expected = 0.2 * scale(np.arange(80.0))[:, None, None]
        if kind == "ramp":
            assert (noise[0] == np.float32(0.1) - 0.1).all()
        unit = noise[1:] / expected[1:]
        assert unit.std() == pytest.approx(1, rel=0.02)
        assert unit.mean() == pytest.approx(0, abs=0.03)
        assert np.corrcoef(unit[:-1].ravel(), unit[1:].ravel())[0, 1] == pytest.approx(0, abs=0.03)
        assert np.corrcoef(unit[:, :-1].ravel(), unit[:, 1:].ravel())[0, 1] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("host", [True, False])
def test_noise_stays_in_the_box(host):
    options = Options(noise=5.0)
    env = wrap_host(HostFromJax(JaxBatch(Echo(), B)), options)
    env = env if host else HostFromJax(JaxBatch(wrap_jax(Echo(), options), B))
    executed = np.array([ts.final_obs.state for ts in play(env, [np.zeros((B, 2), np.float32)] * 20)[1]])
    assert (executed.min(), executed.max()) == (-1, 1)


@pytest.mark.parametrize("host", [True, False])
def test_noise_belongs_to_slot_and_episode(host):
    """The draws of a slot depend on its seed and episode, whatever other slots and global generators do."""
    options = Options(noise=0.3, chunk=2)
    env = wrap_host(HostFromJax(JaxBatch(Echo(4), 2)), options)
    env = env if host else HostFromJax(JaxBatch(wrap_jax(Echo(4), options), 2))
    action = np.zeros((2, 2, 2), np.float32)

    def executed(seed, actives):
        np.random.seed(seed[0])  # noqa: NPY002  the global generator must not matter
        return np.array([ts.final_obs.state[1] for ts in play(env, [action] * 6, actives, seed)[1]])

    both = executed([1, 2], None)
    np.testing.assert_array_equal(both, executed([7, 2], [np.array([i % 2 == 0, True]) for i in range(6)]))
    assert (both != executed([1, 3], None)).all()
    assert len(np.unique(both)) == both.size  # episodes of two chunks each: three episodes, all different
    np.testing.assert_array_equal(both, executed([1, 2], None))


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize(
    "options",
    [Options(end_at_success=True), Options(noise=0.3), Options(history=3), Options(chunk=2, history=2, noise=0.1)],
)
def test_a_restart_is_as_good_as_an_end(options, host):
    """Whatever a wrapper remembers, an episode that is broken off is followed as one that the clock ended."""

    def wrapped(max_steps):
        if host:
            return wrap_host(HostFromJax(JaxBatch(Echo(max_steps), B)), options)
        return HostFromJax(JaxBatch(wrap_jax(Echo(max_steps), options), B))

    short, long, partly = wrapped(4), wrapped(1000), wrapped(1000)
    actions = draw_actions(short.spec, 8)
    first = 2 if options.chunk else 4  # actions in four primitive steps
    ended = play(short, actions[:first])[1][-1]
    assert ended.truncated.all()
    before = play(long, actions[:first])[1][-1].obs
    assert_same(ended.obs, long.restart(np.ones(B, bool)))
    assert_same(short.step(actions[first]), long.step(actions[first]))

    play(partly, actions[:first])
    some = np.arange(B) % 2 == 0
    assert_same(where(some, ended.obs, before), partly.restart(some))
    resumed = partly.step(actions[first]).final_obs
    assert resumed.step.tolist() == (np.where(some, 0, before.step) + 4 // first).tolist()
    assert partly.snapshot() is None
    with pytest.raises(RuntimeError, match="no snapshots"):
        partly.restore(np.zeros((B, 1), np.uint32))


def test_max_steps():
    env = toys.make("pointmaze", 2, Options(max_steps=3, host=True))
    assert env.spec.max_steps == 3
    ts = play(env, [np.zeros((2, 2), np.float32)] * 6)[1]
    assert [bool(t.truncated.all()) for t in ts] == [False, False, True] * 2
    assert not any(t.terminated.any() for t in ts)
    assert (ts[2].obs.state != ts[2].final_obs.state).all()


def test_wrapped_vector_renders_and_closes():
    class Painted(CountingSim):
        closed = 0

        def render(self, size):
            return np.full((size, size, 3), self.count, np.uint8)

        def close(self):
            Painted.closed += 1

    env = wrap_host(HostVector(Painted, 2), Options(chunk=2, history=2))
    env.reset(0)
    env.step(np.zeros((2, 2, 1), np.float32), np.array([False, True]))
    assert env.render(1, 4).shape == (4, 4, 3)
    assert (env.render(0, 4).max(), env.render(1, 4).max()) == (0, 2)
    env.close()
    assert Painted.closed == 2


def test_wrong_shapes_and_tasks_are_refused():
    short, flat = np.zeros((2, 3, 2), np.float32), np.zeros(2, np.float32)
    for options, action in ((Options(chunk=4), short), (Options(noise=0.1), flat), (Options(), flat)):
        env = toys.make("pointmaze", 2, Options(host=True))
        for wrapped in (wrap_host(env, options), HostFromJax(JaxBatch(wrap_jax(toys.build("pointmaze"), options), 2))):
            wrapped.reset(0)
            with pytest.raises(ValueError, match="shape"):
                wrapped.step(action)
    for task in (0, 6, [1, 6]):
        with pytest.raises(ValueError, match="1 to 5"):
            env.reset(0, task)
    fresh = toys.make("match", 2, Options(host=True))
    with pytest.raises(RuntimeError, match="reset"):
        fresh.step(np.zeros((2, 2), np.float32))
    with pytest.raises(RuntimeError, match="reset"):
        fresh.restart(np.ones(2, bool))
    with pytest.raises(RenderError, match="no camera"):
        fresh.render()


@pytest.mark.parametrize("options", [Options(chunk=4), Options(noise=0.1)])
def test_wrong_shapes_are_refused_under_jit(options):
    batch = JaxBatch(wrap_jax(toys.build("pointmaze"), options), 2)
    with pytest.raises(ValueError, match="takes actions"):
        jax.eval_shape(lambda a: batch.step(batch.reset(0)[0], a), jnp.zeros((2, 3)))
