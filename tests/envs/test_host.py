"""The vector environment around a simulator of a few lines, whose every number is known."""

import functools
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core.config import ConfigError
from core.env import HostEnv
from core.seeds import derive
from core.types import EnvSpec
from envs.host import NO_GOAL, Box, GlobalRandom, HostVector
from envs.render import RenderError
from envs.workers import WorkerError
from tests.envs.episodes import check_types, record, same


class CountingSim:
    """State (episode seed mod 1000, task, steps); action[0] > 0.9 terminates, -1 raises; action[1] > 0.5 succeeds."""

    def __init__(self, broken=False):
        if broken:
            raise ZeroDivisionError("no such simulator")
        self.spec = EnvSpec("test/counting", (3,), 2, max_steps=6, num_tasks=4)

    def reset(self, seed, task):
        self.state = np.array([seed % 1000, task, 0], np.float64)
        return self.state.copy(), NO_GOAL

    def step(self, action):
        if action[0] == -1:
            raise ArithmeticError("the simulator diverged")
        self.state[2] += 1
        return self.state.copy(), float(action[1]), bool(action[0] > 0.9), float(action[1] > 0.5)

    def render(self, size):
        if size > 100:
            raise RenderError("too large")
        return np.full((size, size, 3), self.state[2], np.uint8)

    def close(self):
        self.state = None


class NoisySim(CountingSim):
    """Draws its state from NumPy's global generator, as some libraries do; reports whether jax was imported."""

    def __init__(self):
        super().__init__()
        self.random = GlobalRandom()

    def reset(self, seed, task):
        self.random.seed(seed)
        return self.step([0, 0])[0], NO_GOAL

    def step(self, action):
        with self.random:
            draw = np.random.uniform()  # noqa: NPY002
        return np.array([draw, "jax" in sys.modules, 0]), 0.0, False, 0.0


class PictureSim(CountingSim):
    """States and goals are uint8 pictures of as many steps, and of the task."""

    def __init__(self):
        super().__init__()
        self.spec = self.spec._replace(obs_shape=(4, 5, 3), goal_shape=(4, 5, 3))

    def reset(self, seed, task):
        super().reset(seed, task)
        return self.picture(0), self.picture(task)

    def step(self, action):
        state, *rest = super().step(action)
        return self.picture(state[2]), *rest

    def picture(self, value):
        return np.full((4, 5, 3), value, np.uint8)


def act(*rows):
    return np.array(rows, np.float32)


@pytest.fixture
def env():
    return HostVector(CountingSim, 2)


def test_seeds_are_per_slot_and_episode(env):
    assert isinstance(env, HostEnv)
    obs = env.reset(5, task=2)
    assert obs.state[:, 0].tolist() == [derive(derive(5, slot), 0) % 1000 for slot in range(2)]
    assert obs.state[:, 1].tolist() == [2, 2]
    ts = env.step(act([1, 0], [0, 0]))  # slot 0 begins its episode 1
    assert ts.obs.state[0, 0] == derive(derive(5, 0), 1) % 1000
    obs = env.reset([11, 12], task=[1, 4])
    assert obs.state[:, 0].tolist() == [derive(11, 0) % 1000, derive(12, 0) % 1000]
    assert obs.state[:, 1].tolist() == [1, 4]


def test_no_task_leaves_the_draw_to_the_simulator(env):
    assert env.reset(0).state[:, 1].tolist() == [0, 0]


def test_termination_and_truncation_are_apart(env):
    env.reset(0)
    ts = env.step(act([1, 0.75], [0, 0.25]))
    assert ts.terminated.tolist() == [True, False]
    assert ts.truncated.tolist() == [False, False]
    assert ts.success.tolist() == [1, 0]
    assert ts.reward.tolist() == [0.75, 0.25]
    for _ in range(4):
        ts = env.step(act([0, 0], [0, 0]))
    ts = env.step(act([0, 0], [1, 0]))  # slot 1 terminates exactly at the limit
    assert (ts.terminated.tolist(), ts.truncated.tolist()) == ([False, True], [False, False])
    ts = env.step(act([0, 0.5], [0, 0]))
    assert (ts.terminated.tolist(), ts.truncated.tolist()) == ([False, False], [True, False])


def test_final_obs_is_the_successor_and_obs_the_next_episode(env):
    env.reset(3)
    before = env.step(act([0, 0.5], [0, 0.25]))
    assert before.obs.step.tolist() == before.final_obs.step.tolist() == [1, 1]
    assert before.obs.reward.tolist() == [0.5, 0.25]
    ts = env.step(act([1, 0.5], [0, 0]))
    assert ts.final_obs.state[:, 2].tolist() == ts.final_obs.step.tolist() == [2, 2]
    assert ts.final_obs.reward.tolist() == [0.5, 0]
    assert ts.obs.state[:, 2].tolist() == ts.obs.step.tolist() == [0, 2]
    assert ts.obs.reward.tolist() == [0, 0]
    assert ts.final_obs.state[0, 0] == before.obs.state[0, 0] != ts.obs.state[0, 0]


def test_results_are_not_overwritten_by_later_steps(env):
    first = env.reset(3)
    kept = first.state.copy()
    ts = env.step(act([0, 0], [0, 0]))
    final = ts.final_obs.state.copy()
    env.step(act([0, 0], [1, 0]))
    assert np.array_equal(first.state, kept)
    assert np.array_equal(ts.final_obs.state, final)


def test_inactive_slots_do_not_move(env):
    env.reset(0)
    env.step(act([0, 0.5], [0, 0.25]))
    ts = env.step(act([1, 0.75], [np.nan, 0.75]), active=np.array([True, False]))
    assert ts.obs.step.tolist() == [0, 1]
    assert ts.final_obs.step.tolist() == [2, 1]
    assert ts.obs.state[1].tolist() == ts.final_obs.state[1].tolist()
    assert (ts.obs.reward[1], ts.final_obs.reward[1]) == (0.25, 0.25)
    assert (ts.reward[1], ts.terminated[1], ts.truncated[1], ts.success[1]) == (0, False, False, 0)
    assert env.step(act([0, 0], [0, 0])).obs.step.tolist() == [1, 2]


def test_restart_begins_the_next_episode_of_some_slots(env):
    env.reset(5)
    env.step(act([0, 0], [0, 0]))
    obs = env.restart(np.array([False, True]))
    assert obs.step.tolist() == [1, 0]
    assert obs.state[1, 0] == derive(derive(5, 1), 1) % 1000


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(workers):
    alone, split = HostVector(CountingSim, 3), HostVector(CountingSim, 3, workers)
    try:
        for task in (None, [1, 2, 3]):
            a, b = (record(env, 9, 15, task) for env in (alone, split))
            assert same(a, b)
        check_types(split, b[0], b[1])
        mask = np.array([False, True, True])
        assert same([alone.restart(mask)], [split.restart(mask)])
        assert same(*([env.step(act([0, 0], [0, 0], [0, 0]), mask)] for env in (alone, split)))
        assert [split.render(slot, 2).max() for slot in range(3)] == [alone.render(slot, 2).max() for slot in range(3)]
        assert split.spec == alone.spec
    finally:
        split.close()


def test_pictures_pass_through_workers():
    alone, split = HostVector(PictureSim, 3), HostVector(PictureSim, 3, workers=2)
    traces = [record(env, 2, 10, [1, 2, 3]) for env in (alone, split)]
    split.close()
    assert traces[0][5].obs.state.max() > 0
    assert traces[0][0].goal[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert same(*traces)


def leaves(tree):
    return [leaf for x in tree for leaf in (leaves(x) if isinstance(x, tuple) else [x])]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_handed_out_stays_as_it_is(workers):
    env = HostVector(CountingSim, 2, workers)
    handed, kept = [], []
    for how in (
        lambda: env.reset(3), lambda: env.step(act([0, 0], [0, 0])), lambda: env.step(act([0, 0], [1, 0])),
        lambda: env.restart(np.array([True, False])), lambda: env.step(act([0, 0], [1, 1])),
    ):  # fmt: skip
        handed += leaves(how())
        kept += [x.copy() for x in handed[len(kept) :]]
    env.close()
    assert all(map(np.array_equal, handed, kept))


class KeepingSim(CountingSim):
    """Keeps the action that it was given, and pays the change."""

    last = np.zeros(2)

    def step(self, action):
        change, self.last = float(action[1] - self.last[1]), action
        state, _, *ends = super().step(action)
        return state, change, *ends


def test_a_sim_may_keep_its_action():
    rewards = []
    for workers in (0, 1):
        env = HostVector(KeepingSim, 2, workers)
        env.reset(0)
        rewards.append([env.step(act([0, a], [0, -a])).reward.tolist() for a in (0.25, 0.5, -0.25)])
        env.close()
    assert rewards[0] == rewards[1] == [[0.25, -0.25], [0.25, -0.25], [-0.75, 0.75]]


def test_simulators_that_cannot_be_read_out_have_no_snapshot(env):
    split = HostVector(CountingSim, 2, workers=1)
    for each in (env, split):
        obs = each.reset(0)
        assert each.snapshot() is None
        with pytest.raises(RuntimeError, match="no snapshots"):
            each.restore(np.zeros((2, 1), np.uint32))
        assert np.array_equal(each.step(act([0, 0], [0, 0])).obs.step, obs.step + 1)
    split.close()


def test_max_steps(env):
    short = HostVector(CountingSim, 1, max_steps=2)
    assert short.spec.max_steps == 2
    short.reset(0)
    assert [bool(short.step(act([0, 0])).truncated[0]) for _ in range(4)] == [False, True, False, True]
    for wrong, workers in ((7, 0), (-1, 0), (7, 1)):
        with pytest.raises(ConfigError, match=f"max_steps {wrong}"):
            HostVector(CountingSim, 1, workers, max_steps=wrong)


def test_global_random_is_on_loan():
    env = HostVector(NoisySim, 2)
    assert same(record(env, 4, 10, disturb=1), record(env, 4, 10, disturb=2))
    assert not same(record(env, 4, 10), record(env, 5, 10))
    np.random.seed(3)  # noqa: NPY002
    undisturbed = np.random.uniform(size=2)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    env.reset(0)
    env.step(act([0, 0], [0, 0]))
    assert np.array_equal(np.random.uniform(size=2), undisturbed)  # noqa: NPY002


def test_workers_import_no_jax():
    import jax  # noqa: F401  the parent has it, and a fork would

    env = HostVector(NoisySim, 1, workers=1)
    assert env.reset(0).state[0, 1] == 0
    env.close()


def test_box_is_exact_for_unit_bounds():
    action = np.random.default_rng(0).uniform(-1, 1, 99).astype(np.float32)
    assert np.array_equal(Box(-np.ones(99), np.ones(99))(action), action)
    scaled = Box(np.float32([-0.4, 1]), np.float32([0.4, 5]))
    assert scaled(np.float32([1, -1])).tolist() == np.float32([0.4, 1]).tolist()
    assert scaled(np.float32([-7, 7])).tolist() == np.float32([-0.4, 5]).tolist()


def test_bad_actions_are_refused_and_harm_nothing(env):
    with pytest.raises(RuntimeError, match="not reset"):
        env.step(act([0, 0], [0, 0]))
    env.reset(0)
    for wrong in (act([0, 0]), act([0], [0]), act(0, 0), np.array([["a", "b"]] * 2)):
        with pytest.raises(ValueError, match=r"takes actions f32\[2, 2\]"):
            env.step(wrong)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="action row 1 is not finite"):
            env.step(act([0, 0], [0, value]))
    with pytest.raises(ValueError, match=r"active is bool\[2\]"):
        env.step(act([0, 0], [0, 0]), active=np.array([1, 0]))
    with pytest.raises(ValueError, match=r"slots is bool\[2\]"):
        env.restart(np.array([True]))
    assert env.step(act([0, 0], [0, 0])).obs.step.tolist() == [1, 1]
    env.close()
    for method in (env.reset, env.restart):
        with pytest.raises(RuntimeError, match="closed"):
            method([0, 0])


def test_bad_resets_and_sizes_are_refused(env):
    for task in (0, 5, [1, 5]):
        with pytest.raises(ValueError, match="tasks are 1 to 4"):
            env.reset(0, task)
    for arguments in ((-1,), ([1, -1],), ([1, 2**64],), ([1, 2, 3],), (0, [1, 2, 3])):
        with pytest.raises(ValueError, match=r"negative|64 bits|one .* per"):
            env.reset(*arguments)
    for arguments in ((0,), (1, -1)):
        with pytest.raises(ConfigError, match="at least"):
            HostVector(CountingSim, *arguments)
    with pytest.raises(ValueError, match="no slot 2"):
        env.render(2)


def gone(pid):
    """Whether a child of ours has ended and been waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def children():
    """Processes of this one that have not ended."""
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    return own.read_text().split() if own.exists() else []


def test_a_workers_exception_shows_its_traceback():
    env = HostVector(CountingSim, 2, workers=2)
    pids = env.worker_pids
    env.reset(0)
    with pytest.raises(WorkerError, match=r"(?s)worker 1.*ArithmeticError: the simulator diverged"):
        env.step(act([0, 0], [-1, 0]))
    assert all(map(gone, pids))
    with pytest.raises(WorkerError, match="closed"):
        env.step(act([0, 0], [0, 0]))


def test_the_owners_part_fails_as_itself_and_ends_the_workers():
    env = HostVector(CountingSim, 2, workers=1)
    env.reset(0)
    with pytest.raises(ArithmeticError, match="the simulator diverged"):
        env.step(act([0, 0], [-1, 0]))
    assert all(map(gone, env.worker_pids))
    with pytest.raises(WorkerError, match="closed"):
        env.step(act([0, 0], [0, 0]))


def test_a_factory_that_fails_shows_its_traceback():
    with pytest.raises(WorkerError, match="ZeroDivisionError: no such simulator"):
        HostVector(functools.partial(CountingSim, broken=True), 2, workers=2)


def build_in_workers_only(parent):
    return CountingSim(broken=os.getpid() == parent)


def test_a_factory_that_fails_in_the_owner_ends_the_workers():
    others = children()
    with pytest.raises(ZeroDivisionError, match="no such simulator") as kept:
        HostVector(functools.partial(build_in_workers_only, os.getpid()), 2, workers=1)
    assert kept  # with its traceback, which holds the vector that was not made
    assert children() == others


def test_a_refused_picture_leaves_the_workers_alive():
    env = HostVector(CountingSim, 2, workers=2)
    env.reset(0)
    with pytest.raises(RenderError, match="too large"):
        env.render(1, size=101)
    assert env.step(act([0, 0], [0, 0])).obs.step.tolist() == [1, 1]
    env.close()


def test_a_killed_worker_is_named_with_its_exit_code():
    env = HostVector(CountingSim, 3, workers=3)
    pids = env.worker_pids
    env.reset(0)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=rf"worker 1 \(process {pids[1]}\) died: exit code -9 \(SIGKILL\)"):
        env.step(np.zeros((3, 2)))
    assert all(map(gone, pids))


def test_workers_leave_the_signals_that_stop_a_run_to_their_parent():
    env = HostVector(CountingSim, 1, workers=1)
    env.reset(0)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        os.kill(env.worker_pids[0], getattr(signal, name))
    assert env.step(act([0, 0])).obs.step.tolist() == [1]
    env.close()


def test_close_and_garbage_collection_end_the_workers():
    closed, dropped = HostVector(CountingSim, 1, workers=1), HostVector(CountingSim, 1, workers=1)
    pids = closed.worker_pids + dropped.worker_pids
    assert not any(map(gone, pids))
    closed.close()
    closed.close()
    del dropped
    assert all(map(gone, pids))


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks /proc what belongs to a process")


def named_memory():
    return sorted(os.listdir("/dev/shm"))


def shared_memory(pid="self"):
    """The pieces of memory that a process shares with its workers, mapped or as open files."""
    mapped = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:rheostat" in line]
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return mapped + [link for link in links if "memfd:rheostat" in link]


@needs_proc
def test_shared_memory_goes_with_its_vector():
    before, others = named_memory(), shared_memory()
    closed, dropped, broken, killed = (HostVector(CountingSim, 2, workers) for workers in (2, 1, 1, 1))
    assert len(shared_memory()) == len(others) + 8  # each is mapped, by a mapping that keeps one descriptor
    assert [len(shared_memory(pid)) for pid in closed.worker_pids] == [2, 2]
    for env in (dropped, broken, killed):
        env.reset(0)
    closed.close()
    with pytest.raises(WorkerError, match="diverged"):
        broken.step(act([-1, 0], [0, 0]))
    os.kill(killed.worker_pids[0], signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        killed.step(act([0, 0], [0, 0]))
    del dropped, broken, killed, env
    gc.collect()  # tracebacks kept the last two
    assert (named_memory(), shared_memory()) == (before, others)


@needs_proc
def test_shared_memory_goes_with_the_interpreter_and_without_a_word():
    before = named_memory()
    program = (
        "from tests.envs.test_host import CountingSim; from envs.host import HostVector\n"
        "env = HostVector(CountingSim, 2, workers=2)\n"
        "env.reset(0)\n"
        "print(*env.worker_pids)"
    )
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=surroundings)
    assert (run.stderr, run.returncode) == ("", 0)
    assert all(gone_or_zombie(int(pid)) for pid in run.stdout.split())
    assert named_memory() == before


@needs_proc
def test_workers_end_when_their_parent_is_killed():
    program = (
        "from tests.envs.test_host import CountingSim; from envs.host import HostVector; import time;"
        "env = HostVector(CountingSim, 2, workers=2); env.reset(0); print(*env.worker_pids, flush=True); time.sleep(60)"
    )
    path, before = os.pathsep.join(filter(None, sys.path)), named_memory()
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if all(map(gone_or_zombie, pids)):
            break
        time.sleep(0.05)
    assert all(map(gone_or_zombie, pids))
    assert named_memory() == before


def gone_or_zombie(pid):
    """An orphan's end, which its adopter may not have waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_listing_tasks_imports_no_simulator_and_no_jax():
    program = (
        "import sys, envs, envs.host, envs.workers, envs.render, envs.mujoco, envs.metaworld, envs.ogbench\n"
        "assert all(envs.tasks(suite) for suite in ('mujoco', 'metaworld', 'ogbench'))\n"
        "print({'jax', 'mujoco', 'metaworld', 'ogbench', 'gymnasium'} & set(sys.modules))"
    )
    path = os.pathsep.join(filter(None, sys.path))
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.stdout.strip() == "set()", found.stderr
