"""What the benchmarks count and divide; how fast anything is, no test asserts."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import contenders, peers
from benchmarks.contenders import PEERS, Peer, PeerError, Seen, at_once, interleaved
from core.config import ConfigError
from tests.test_workspace import ALLOWED, imported


def test_everybody_is_measured_in_turn_and_back():
    order = []
    seen = interleaved({name: lambda name=name: order.append(name) or len(order) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    np.testing.assert_array_equal(seen["a"], [1, 6, 7])


def test_ratios_are_taken_round_by_round():
    seen = Seen(ours=np.array([1.0, 20.0, 6.0]), theirs=np.array([1.0, 10.0, 2.0]), other=np.array([9.0, 0.0, 0.0]))
    assert seen.ratio("ours", "theirs") == 2.0 != seen.median("ours") / seen.median("theirs")
    assert seen.ratio("ours", "theirs", 100) == 200
    assert seen.best(["theirs", "other"]) == "theirs"


@pytest.fixture(scope="module")
def policy():
    with Peer("policy", states=11, actions=3, num_envs=4, steps=5) as peer:
        yield peer


def test_a_peer_measures_as_often_as_asked(policy):
    assert policy() > 0
    assert policy() > 0


def test_rates_at_the_same_time_are_summed():
    class Fixed:
        def __init__(self, rate, log):
            self.rate, self.log = rate, log

        def begin(self):
            self.log.append("begin")

        def end(self):
            self.log.append("end")
            return self.rate

    log = []
    assert at_once([Fixed(2.0, log), Fixed(3.0, log)])() == 5.0
    assert log == ["begin", "begin", "end", "end"]


def test_a_failure_shows_what_the_peer_printed():
    with pytest.raises(PeerError, match="NoSuch-v5"):
        Peer("bare", name="NoSuch-v5", num_envs=1, steps=1, threads=1)


def test_a_missing_environment_names_the_command(tmp_path):
    with pytest.raises(ConfigError, match="make bench"):
        Peer("policy", tmp_path / "v" / "bin" / "python")


class Clockwork:
    """A vector environment whose slot i ends an episode after i + 2 steps and then spends a step on its reset."""

    action_space = type("Box", (), {"dtype": np.dtype(np.float32)})

    def reset(self):
        self.age = np.zeros(3, int)
        return np.zeros((3, 2)), {}

    def step(self, action):
        self.age = np.where(self.age == np.arange(3) + 2, 0, self.age + 1)
        return np.zeros((3, 2)), None, self.age == np.arange(3) + 2, np.zeros(3, bool), {}


def test_steps_that_reset_are_not_counted(monkeypatch):
    """Three slots spend every third, fourth and fifth of 60 steps on one."""
    ticks = iter(range(100))
    monkeypatch.setattr(peers, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    env = Clockwork()
    measure = peers._in_turn(env, lambda obs: obs, 3, 60)
    assert measure() == 60 * (2 / 3 + 3 / 4 + 4 / 5)


def test_the_bare_loop_replays_what_the_policy_does():
    """It compares its last states with Gymnasium's when it is built; 40 steps make Hopper fall more than once."""
    assert peers.bare("Hopper-v5", num_envs=3, steps=40, threads=2)() > 0


def test_time_inside_the_simulator_is_part_of_a_step():
    import mujoco

    kept = mujoco.mj_step
    try:
        physics, whole = peers.inside("Hopper-v5", 30)()
    finally:
        mujoco.mj_step = kept
    assert 0 < physics < whole


@pytest.mark.parametrize("name", ["peers.py", "peers_torch.py"])
def test_the_script_imports_nothing_of_ours(name):
    """It runs where only its own environment is."""
    assert not imported(contenders.HERE / name) & set(ALLOWED)


def test_the_peers_are_pinned_without_addresses():
    lines = [line for line in (contenders.HERE / "peers.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in lines)
    assert not [line for line in lines if line.startswith(("nvidia", "triton", "cuda"))]


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="`make bench` builds the peers' environment")
@pytest.mark.parametrize(
    ("contender", "arguments"),
    [
        ("envpool", {"name": "Hopper-v5", "num_envs": 4, "steps": 10, "threads": 1, "batch": 4}),
        ("envpool", {"name": "Hopper-v5", "num_envs": 4, "steps": 10, "threads": 1, "batch": 2}),
        ("d3rlpy", {"transitions": 2000, "states": 3, "actions": 2, "updates": 2, "threads": 1}),
        ("sbx", {"name": "HalfCheetah-v5", "num_envs": 2, "steps": 10}),
    ],
)
def test_the_peers_run(contender, arguments):
    with Peer(contender, PEERS, **arguments) as peer:
        assert peer() > 0
