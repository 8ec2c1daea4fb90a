"""What the benchmark of datasets measures, hands over and divides."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import iql, prdc
from benchmarks import __main__ as program
from benchmarks import offline, peers, updates
from benchmarks.contenders import PEERS, Peer, Seen
from benchmarks.updates import rows_of
from core import batches, dataset, sampling
from core.algorithm import Algorithm
from core.config import ConfigError
from core.dataset import DataError
from core.types import EnvSpec
from envs import datasets


def three_episodes():
    """Of 2, 3 and 1 transitions; the first is terminal, and the clock ended the others."""
    rng = np.random.default_rng(0)
    length = np.array([2, 3, 1])
    terminated = np.zeros(9, bool)
    terminated[1] = True
    state, action = rng.standard_normal((9, 11), np.float32), rng.uniform(-1, 1, (9, 3)).astype(np.float32)
    return dataset.from_lengths(state, action, np.arange(9, dtype=np.float32), terminated, length)


def test_others_get_the_transitions_and_where_episodes_end(tmp_path):
    data = three_episodes()
    offline.export(data, tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as file:
        given = dict(file)
    np.testing.assert_array_equal(given["rewards"], [0, 1, 3, 4, 5, 7])
    np.testing.assert_array_equal(given["terminals"], [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(given["timeouts"], [0, 0, 0, 0, 1, 1])
    state = data.state[[0, 1, 3, 4, 5, 7]]
    np.testing.assert_allclose(given["observations"], (state - state.mean(0)) / (state.std(0) + 1e-3), rtol=1e-4)
    np.testing.assert_array_equal(given["actions"], data.action[[0, 1, 3, 4, 5, 7]])


def test_noise_is_of_the_same_layout(tmp_path):
    offline.export(three_episodes(), tmp_path / "data.npz")
    made = peers.noise(2_500, 11, 3)
    with np.load(tmp_path / "data.npz") as file:
        assert {k: (v.dtype, v.shape[1:]) for k, v in file.items()} == {
            k: (v.dtype, v.shape[1:]) for k, v in made.items()
        }
    np.testing.assert_array_equal(np.flatnonzero(made["timeouts"]), [999, 1999])


def test_the_index_is_built_anew_and_counted(monkeypatch, tmp_path):
    monkeypatch.setenv("RHEOSTAT_CACHE", str(tmp_path))
    ticks = iter([1.0, 5.0])
    monkeypatch.setattr(offline, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    data = rows_of(200, offline.SPEC, 50)
    made = offline.prepared(prdc, data)
    rows = made.data.extra
    assert (made.seconds, list(tmp_path.iterdir())) == (4.0, [])
    assert made.nbytes == sum(x.nbytes for x in jax.tree.leaves(rows)) > rows.index.listed.nbytes == 4 * 200 * 128
    assert offline.prepared(iql, data)[1:] == (0.0, 0)


def test_a_run_is_compared_by_its_time_not_by_its_rates():
    """100 updates take 1 s twice, and PRDC's 4 s and 1 s."""
    seen = Seen({"PRDC": np.array([25.0, 100.0]), "TD3+BC": np.array([100.0, 100.0])})
    assert offline.over_run(seen) == (2.5, 4.0, 1.0)


def test_the_best_of_the_others_is_compared():
    seen = Seen(
        {"IQL": np.array([30.0]), "IQL, a": np.array([5.0]), "IQL, b": np.array([10.0]), "CQL": np.array([1.0])}
    )
    assert [(line["what"], line["value"]) for line in offline.compared("IQL", seen)] == [
        ("IQL", 30.0), ("IQL, a", 5.0), ("IQL, b", 10.0), ("IQL beside d3rlpy", 3.0)
    ]  # fmt: skip
    assert len(offline.compared("CQL", seen)) == 1


def test_the_table_that_is_timed_is_the_weights():
    data = rows_of(400, EnvSpec("tiny", (2,), 1), 100)
    ret = np.array([data.reward[i : i + 100].sum(dtype=np.float64) for i in range(0, 404, 101)])
    p = np.exp((ret - ret.min()) / np.ptp(ret) / 0.1)
    drawn = sampling.probabilities(offline.table_of("rw:0.1", data))
    np.testing.assert_allclose(drawn, np.repeat(p / p.sum() / 100, 100), rtol=1e-5)


def test_every_draw_of_the_loop_is_made(monkeypatch):
    """A program that drew less would sum to less, and one that drew once for all would draw alike."""
    ticks = iter([0.0, 3.0])
    monkeypatch.setattr(offline, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    keys = []

    def draw(key, of):
        jax.debug.callback(lambda data: keys.append(tuple(map(int, data))), jax.random.key_data(key))
        return jnp.full(4, of, jnp.int32)

    assert offline.drawing(draw, 6, jnp.int32(1))() == 1e6 * 3 / 6
    jax.effects_barrier()
    assert len(keys) == 12  # once to compile
    assert len(set(keys)) == 6


def test_our_loop_is_divided_by_its_time(monkeypatch):
    ticks = iter([0.0, 9.0, 9.0, 13.0])
    monkeypatch.setattr(updates, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    data = rows_of(100, EnvSpec("tiny", (2,), 1), 50)
    count = Algorithm(lambda *_: jnp.zeros(()), lambda n, *_: (n + 1, {}), None, None, sample=batches.sampled(4))
    measure = updates.looped(count, batches.data(data, dataset.norm(data)), 2, 10)
    assert measure() == 2 * 10 / 4


def test_all_rows_at_tiny_sizes(monkeypatch, tmp_path):
    monkeypatch.setattr(offline, "RUN", 400)
    monkeypatch.setattr(offline, "WEIGHTED", 20_000)
    monkeypatch.setattr(offline, "DRAWS", 20)
    monkeypatch.setattr(offline, "DRAWN", (10_000, 20_000))
    asked = []
    monkeypatch.setattr(
        offline, "looped", lambda algo, data, seeds, updates, *warm: asked.append(updates) or (lambda: 2.0)
    )
    path, made = tmp_path / "data.npz", rows_of(500, offline.SPEC, 50)
    arrays = dict(zip(datasets.ARRAYS[:4], made[:4], strict=True))
    length = np.full(10, 50, np.int32)
    datasets.write(path, {**arrays, "length": length, "success": np.zeros(10, np.float32)}, {"task": offline.SPEC.name})
    table = {row["what"]: row for row in offline.measure(1, True, False, str(path))}
    assert all(row["value"] > 0 for row in table.values())
    schemes = [f"weights {scheme}:0.1 of 2,000 transitions" for scheme in ("rw", "aw")]
    assert asked == [100, 100, 10, 10, 100, 2, 2]
    assert list(table) == [
        *offline.ALGORITHMS, "PRDC's update over TD3+BC's", "PRDC's index, building", "PRDC's index",
        *(what for scheme in schemes for what in (scheme, f"{scheme}, peak")),
        *(what for size in ("1,000", "2,000") for what in (
            f"weighted draw of 256 from {size}", f"uniform draw of 256 from {size}", f"weighted over uniform, {size}")),
    ]  # fmt: skip
    assert table["weights rw:0.1 of 2,000 transitions, peak"]["value"] > 8 * 2_000 / 1e6  # a float64 each
    assert "500 transitions" in table["PRDC's index, building"]["note"]


def test_data_of_another_robot_are_refused(tmp_path):
    path, made = tmp_path / "data.npz", rows_of(100, EnvSpec("other", (4,), 3), 50)
    arrays = dict(zip(datasets.ARRAYS[:4], made[:4], strict=True))
    datasets.write(
        path, {**arrays, "length": np.full(2, 50, np.int32), "success": np.zeros(2, np.float32)}, {"task": "other"}
    )
    with pytest.raises(DataError, match="state"):
        offline.measure(1, True, False, str(path))


def test_data_are_for_this_benchmark_only():
    with pytest.raises(ConfigError, match="leave it out"):
        program.bench("updates", data="hopper.npz")


@pytest.mark.slow
def test_hopper_is_played_once(monkeypatch, tmp_path):
    monkeypatch.setattr(offline, "HERE", tmp_path)
    path = offline.played(300)
    data, card = datasets.read(path, offline.SPEC)
    assert len(data.row) == card["transitions"] >= 300
    monkeypatch.setattr(offline, "collect", None)
    assert offline.played(300) == path


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="`make bench` builds the peers' environment")
@pytest.mark.parametrize("name", [name for name, one in offline.ALGORITHMS.items() if one.peer])
def test_d3rlpy_runs(name, tmp_path):
    path, one = tmp_path / "data.npz", offline.ALGORITHMS[name]
    offline.export(rows_of(2_000, offline.SPEC, 100), path)
    work = {"path": str(path), "hidden": [8], "options": one.options, "updates": 2, "threads": 1}
    with Peer("d3rlpy", PEERS, algorithm=one.peer, **work) as peer:
        assert peer() > 0
