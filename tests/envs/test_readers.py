"""Datasets of others: the same transitions as their own tools give, and every way such a file can be bad."""

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from core.dataset import DataError
from core.types import EnvSpec
from envs import datasets
from envs.readers import d4rl, files
from tests.envs import foreign

ROLLOUTS = Path(__file__).parents[3] / "shared" / "data" / "mujoco_rollouts"
ENDS = "...T...L..LL.B..T.L...T..T"  # the file's last row ends the task


def transitions(dataset):
    row = dataset.row
    return {
        "observations": dataset.state[row], "actions": dataset.action[row], "rewards": dataset.reward[row],
        "next_observations": dataset.state[row + 1], "terminals": dataset.terminated[row],
    }  # fmt: skip


def loop(data, limit=None, on_end=False):
    """D4RL's transitions, row by row: (row, terminal)."""
    found, count = [], 0
    for i in range(len(data["rewards"]) - 1):
        final = data["timeouts"][i] if limit is None else count == limit - 1
        if final and not on_end:
            count = 0
            continue
        if data["terminals"][i] or final:
            count = 0
        found.append((i, bool(data["terminals"][i])))
        count += 1
    return found


@pytest.mark.parametrize("on_end", [False, True])
@pytest.mark.parametrize("limit", [None, 2, 4, 5])
def test_qlearning_is_the_loop_of_d4rl(on_end, limit):
    for seed in range(20):
        letters = np.random.default_rng(seed).choice(list("....TLB"), 60)
        data = foreign.flat("".join(letters), seed=seed)
        expected = loop(data, limit, on_end)
        if limit:
            del data["timeouts"]
        ours = d4rl.qlearning(data, on_end, limit)
        rows = [row for row, _ in expected]
        np.testing.assert_array_equal(ours["observations"], data["observations"][rows])
        np.testing.assert_array_equal(ours["next_observations"], data["observations"][np.add(rows, 1)])
        np.testing.assert_array_equal(ours["terminals"], [terminal for _, terminal in expected])


@pytest.mark.parametrize(
    ("ends", "limit", "lengths"),
    [
        ("..T.L...", None, [3, 2]),
        ("..T.L", None, [3, 2]),
        ("....", None, []),
        ("........", 3, [3, 2, 2]),
        ("LTB", None, [1, 1, 1]),
    ],
)
def test_sequence_form_leaves_the_unfinished_tail_out(ends, limit, lengths):
    data = foreign.flat(ends)
    if limit:
        del data["timeouts"]
    parts = d4rl.sequence(data, limit)
    assert [part.stop - part.start for part in parts] == lengths
    assert [part.start for part in parts] == [sum(lengths[:i]) for i in range(len(lengths))]


@pytest.mark.parametrize("options", [{}, {"chunks": True, "compression": "gzip"}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_d4rl_gives_the_transitions_of_qlearning(tmp_path, dtype, options):
    data = foreign.flat(ENDS)
    written = {**data, "observations": data["observations"].astype(dtype), "rewards": data["rewards"][:, None]}
    extra = {"infos/qpos": np.zeros((3, 3)), "infos/goal": np.array([b"x"]), "metadata/algorithm": np.array([b"SAC"])}
    path = foreign.hdf5(tmp_path / "set.hdf5", written, **options)
    with h5py.File(path, "a") as file:
        for key, value in extra.items():
            file[key] = value
    dataset, card = datasets.read(path, EnvSpec("any/task", (3,), 2))
    ours, theirs = transitions(dataset), d4rl.qlearning(data)
    going_on = ~theirs["terminals"]
    for key in ("observations", "actions", "rewards", "terminals"):
        np.testing.assert_array_equal(ours[key], theirs[key])
    np.testing.assert_array_equal(ours["next_observations"][going_on], theirs["next_observations"][going_on])
    np.testing.assert_array_equal(ours["next_observations"][~going_on], ours["observations"][~going_on])
    assert card["format"] == "D4RL"
    assert card["task"] is None
    assert card["transitions"] == len(theirs["rewards"])
    assert any("which task" in note for note in card["notes"])


def test_the_row_of_a_time_limit_keeps_its_action_and_reward(tmp_path):
    data = foreign.flat("..L...")
    dataset, _ = datasets.read(foreign.npz(tmp_path / "set.npz", data))
    np.testing.assert_array_equal(dataset.last, [2, 2, 2, 5, 5, 5])
    np.testing.assert_array_equal(dataset.action, data["actions"])  # the file's last row as well
    np.testing.assert_array_equal(dataset.reward, data["rewards"])
    np.testing.assert_array_equal(dataset.row, [0, 1, 3, 4])


@pytest.mark.parametrize("ends", ["..T.L.B..T", "..T.L.B...", "L...T...LL"])
def test_with_next_observations_every_row_is_a_transition(tmp_path, ends):
    """Before a time limit, at the end of a task and in the file's last row: to the true successor."""
    data = foreign.flat(ends)
    after = np.roll(data["observations"], -1, 0)
    last = np.isin(list(ends), ["T", "L", "B"])
    last[-1] = True
    after[last] += 1
    arrays, card = datasets.load(foreign.hdf5(tmp_path / "set.h5", {**data, "next_observations": after}))
    found = transitions(datasets.read(tmp_path / "set.h5")[0])
    for key, values in {**data, "next_observations": after}.items():
        if key != "timeouts":
            np.testing.assert_array_equal(found[key], values, err_msg=key)
    np.testing.assert_array_equal(arrays["length"], np.diff(np.flatnonzero([True, *last])))
    dropped = sum(letter in "LB" for letter in ends[:-1]) + 1
    assert card["transitions"] - len(d4rl.qlearning(data)["rewards"]) == dropped
    rows = "1 row" if dropped == 1 else f"{dropped} rows"
    assert any(note.startswith(f"{rows} with the successor in") for note in card["notes"])


@pytest.mark.skipif(not ROLLOUTS.is_dir(), reason="the rollouts are not here")
@pytest.mark.parametrize("name", ["halfcheetah-sac", "hopper-sac", "walker2d-tqc"])
def test_rollouts_of_gymnasium_keep_their_lengths_and_returns(name):
    dataset, card = datasets.read(ROLLOUTS / f"{name}-v5.npz")
    env, policy = name.split("-")
    sets = json.loads((ROLLOUTS / "index.json").read_text())["sets"]
    said = next(s for s in sets if s["env"].lower() == f"{env}-v5" and s["policy"] == policy)
    assert len(dataset.row) == card["transitions"] == said["steps"]
    assert card["return"]["mean"] == pytest.approx(np.mean(said["returns"]), abs=0.06)
    if env == "halfcheetah":
        assert card["length"]["min"] == card["length"]["max"] == 1000
    assert card["terminated"] == (5 if name == "hopper-sac" else card["terminated"])


def test_without_timeouts_the_limit_must_be_known(tmp_path):
    data = foreign.flat("....T.......")
    del data["timeouts"]
    path = foreign.hdf5(tmp_path / "set.hdf5", data)
    with pytest.raises(DataError, match=r"key 'terminals': without 'timeouts'.*--max-steps"):
        datasets.read(path)
    dataset, card = datasets.read(path, EnvSpec("any/task", (3,), 2, max_steps=4))
    # the file's rows 0 to 3; 4 and a successor; 5 to 8; 9 to 11
    np.testing.assert_array_equal(np.unique(dataset.last), [3, 5, 9, 12])
    assert any("cut at 4 steps" in note for note in card["notes"])
    named = foreign.hdf5(tmp_path / "pen-human-v0.hdf5", data)
    assert any("cut at 100 steps" in note for note in datasets.read(named)[1]["notes"])
    after = np.vstack([data["observations"][1:], np.zeros((1, 3), np.float32)])
    after[6] += 1  # row 7 does not follow row 6
    broken = foreign.hdf5(tmp_path / "broken.hdf5", {**data, "next_observations": after})
    dataset, _ = datasets.read(broken)
    np.testing.assert_array_equal(dataset.state[dataset.row + 1][5:7], after[5:7])
    assert list(datasets.load(broken)[0]["length"]) == [5, 2, 5]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minari(tmp_path, nested, dtype):
    path = tmp_path / "main_data.hdf5"
    episodes = foreign.minari(path, (4, 3), nested, dtype)
    dataset, card = datasets.read(tmp_path, EnvSpec("any/task", (7 if nested else 3,), 2))
    names = ("achieved_goal", "desired_goal", "observation") if nested else ("",)
    keys = [f"observations/{name}".rstrip("/") for name in names]
    state = [np.concatenate([episode[key] for key in keys], 1) for episode in episodes]
    np.testing.assert_array_equal(dataset.state, np.concatenate(state).astype(np.float32))
    np.testing.assert_array_equal(dataset.last, [4] * 5 + [8] * 4)
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminated), [3])
    np.testing.assert_array_equal(dataset.action[5:8], episodes[1]["actions"])
    np.testing.assert_allclose(dataset.reward[:4], episodes[0]["rewards"], rtol=1e-6)
    assert dataset.reward[4] == 0 == dataset.action[4].any()
    assert card["format"] == "Minari"


def test_minari_orders_ten_after_nine_and_knows_success(tmp_path):
    path = tmp_path / "main_data.hdf5"
    episodes = foreign.minari(path, tuple(range(1, 13)))
    with h5py.File(path, "a") as file:
        for e in range(12):
            file[f"episode_{e}/infos/success"] = np.arange(e + 2) == (1 if e % 2 else -1)
    arrays, card = datasets.load(path)
    np.testing.assert_array_equal(arrays["length"], range(1, 13))
    np.testing.assert_array_equal(arrays["success"], [0, 1] * 6)
    np.testing.assert_allclose(arrays["state"][:2], episodes[0]["observations"], rtol=1e-6)
    assert card["success"] == 0.5


def test_minari_scales_actions_to_their_box_and_names_its_task(tmp_path):
    path = tmp_path / "main_data.hdf5"
    episodes = foreign.minari(path)
    foreign.minari_metadata(path, "Hopper-v5", [-2, 0], [2, 1])
    with pytest.raises(DataError, match=r"key 'episode_0/actions': row \d is .*in units of the task's box"):
        datasets.load(path)
    with h5py.File(path, "a") as file:
        for e in range(2):
            file[f"episode_{e}/actions"][:, 1] = np.abs(episodes[e]["actions"][:, 1])
    arrays, card = datasets.load(path)
    np.testing.assert_allclose(arrays["action"][:4, 0], episodes[0]["actions"][:, 0] / 2, rtol=1e-6)
    expected = 2 * np.abs(episodes[0]["actions"][:, 1]) - 1
    np.testing.assert_allclose(arrays["action"][:4, 1], expected, rtol=1e-5, atol=1e-6)
    assert not arrays["action"][4].any()
    assert card["task"] == "mujoco/hopper-v5"


def test_ogbench_compact_is_our_layout(tmp_path):
    data = foreign.ogbench()
    dataset, card = datasets.read(foreign.npz(tmp_path / "pointmaze-medium-navigate-v0-val.npz", data))
    np.testing.assert_array_equal(dataset.state, data["observations"])
    np.testing.assert_array_equal(dataset.action, data["actions"])
    np.testing.assert_array_equal(dataset.last, [4] * 5 + [8] * 4)
    assert not dataset.terminated.any()
    assert card["format"] == "OGBench"
    assert card["task"] == "ogbench/pointmaze-medium"


def test_ogbench_full_and_loaded_forms_give_the_same_transitions(tmp_path):
    """What `ogbench.utils.load_dataset` makes of the compact file, written out, reads back the same."""
    from ogbench.utils import load_dataset

    path = foreign.npz(tmp_path / "compact.npz", foreign.ogbench())
    expected = transitions(datasets.read(path)[0])
    for compact in (False, True):
        other = foreign.npz(tmp_path / f"{compact}.npz", load_dataset(path, compact_dataset=compact))
        found = transitions(datasets.read(other)[0])
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values, err_msg=f"{compact} {key}")


@pytest.mark.parametrize("compact", [True, False])
def test_ogbench_relabelled_for_a_single_task(tmp_path, compact):
    """The transitions and masks stay; an episode ends where a mask is 0, and the rest goes on as another."""
    from ogbench.utils import load_dataset

    path = foreign.npz(tmp_path / "compact.npz", foreign.ogbench((5, 3)))
    data = load_dataset(path, compact_dataset=compact)
    valid = data["valids"] > 0 if compact else np.ones(len(data["actions"]), bool)
    masks = np.ones(len(valid), np.float32)
    masks[np.flatnonzero(valid)[[1, 2, 7]]] = 0  # two in a row, and the file's last transition
    data |= {"masks": masks, "rewards": masks - 1 + np.float32(0.5)}
    dataset, card = datasets.read(foreign.npz(tmp_path / "cube-single-play-singletask-task2-v0.npz", data))
    found, expected = transitions(dataset), transitions(datasets.read(path)[0])
    for key in ("observations", "actions", "next_observations"):
        np.testing.assert_array_equal(found[key], expected[key])
    np.testing.assert_array_equal(found["terminals"], masks[valid] == 0)
    np.testing.assert_array_equal(found["rewards"], data["rewards"][valid])
    assert card["episodes"] == 4
    assert card["success"] == 0.75
    assert card["task"] == "ogbench/cube-single-singletask-task2"
    assert datasets.load(foreign.npz(tmp_path / "cube-single-play-v0.npz", data))[1]["task"] is None


def test_dppo(tmp_path):
    data = foreign.dppo()
    dataset, card = datasets.read(foreign.npz(tmp_path / "train.npz", data))
    np.testing.assert_array_equal(dataset.state[[0, 1, 2, 3, 5, 6, 7]], data["states"])
    np.testing.assert_array_equal(dataset.last, [4] * 5 + [7] * 3)  # row 4 stands behind the end of the task
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminated), [3])
    np.testing.assert_array_equal(dataset.action[7], data["actions"][6])
    assert card["format"] == "DPPO"
    less = {key: data[key] for key in ("states", "actions", "traj_lengths")}
    less["images"] = np.zeros((7, 3, 4, 4), np.uint8)
    dataset, card = datasets.read(foreign.npz(tmp_path / "less.npz", less))
    assert len(dataset.row) == 5
    assert any("no reward" in note for note in card["notes"])
    assert any("pictures" in note for note in card["notes"])


def test_dppo_in_the_units_of_the_task(tmp_path):
    """`normalization.npz` beside the file undoes 2 (x - min) / (max - min + 1e-6) - 1."""
    folder = tmp_path / "hopper-medium-v2"
    folder.mkdir()
    rng, data = np.random.default_rng(0), foreign.dppo()
    raw = {"obs": rng.uniform(-5, 9, (7, 3)), "action": rng.uniform(-0.9, 0.7, (7, 2))}
    ends = {f"{key}_{end}": getattr(x, end)(0) for key, x in raw.items() for end in ("min", "max")}
    for name, key in (("states", "obs"), ("actions", "action")):
        low, high = ends[f"{key}_min"], ends[f"{key}_max"]
        data[name] = (2 * (raw[key] - low) / (high - low + 1e-6) - 1).astype(np.float32)
    np.savez(folder / "normalization.npz", **ends)
    arrays, card = datasets.load(foreign.npz(folder / "train.npz", data))
    np.testing.assert_allclose(arrays["state"][:4], raw["obs"][:4], atol=1e-5)
    np.testing.assert_allclose(arrays["action"][:4], raw["action"][:4], atol=1e-5)
    assert card["task"] == "mujoco/hopper-v4"


def test_pictures_and_discrete_actions(tmp_path):
    data = foreign.ogbench()
    data["observations"] = np.random.default_rng(0).integers(0, 255, (9, 8, 8, 3), np.uint8)
    data["actions"] = np.arange(9) % 4
    dataset, _ = datasets.read(foreign.npz(tmp_path / "set.npz", data), EnvSpec("a/b", (8, 8, 3), 0, num_actions=4))
    np.testing.assert_array_equal(dataset.state, data["observations"])
    assert dataset.action.dtype == np.int32


def test_actions_are_clipped_within_rounding_only(tmp_path):
    data = foreign.flat("...L...")
    data["actions"][1] = [1 + 5e-4, -1 - 5e-4]
    assert np.abs(datasets.read(foreign.npz(tmp_path / "near.npz", data))[0].action).max() == 1
    data["actions"][4, 1] = 1.5
    with pytest.raises(DataError, match=r"key 'actions': row 4 is \[.*1\.5\], outside \[-1, 1\]"):
        datasets.read(foreign.npz(tmp_path / "far.npz", data))
    data["actions"] *= 0.25  # Humanoid's box is [-0.4, 0.4]
    arrays, _ = datasets.load(foreign.npz(tmp_path / "humanoid.npz", data), task="mujoco/humanoid-v5")
    np.testing.assert_allclose(arrays["action"], data["actions"] / 0.4, rtol=1e-5)


def test_blocks_make_no_difference(tmp_path, monkeypatch):
    """Reading a few rows at a time, in chunks, compressed or in Fortran order, gives the same arrays."""
    data = foreign.flat(ENDS, state_dim=5)
    expected = datasets.load(foreign.npz(tmp_path / "set.npz", data))[0]
    monkeypatch.setattr(files, "BLOCK", 64)
    fortran = {key: np.asfortranarray(value) for key, value in data.items()}
    for path in (
        tmp_path / "set.npz",
        foreign.npz(tmp_path / "fortran.npz", fortran),
        foreign.hdf5(tmp_path / "chunks.hdf5", data, chunks=True, compression="gzip"),
        foreign.hdf5(tmp_path / "plain.hdf5", data),
    ):
        found = datasets.load(path)[0]
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values, err_msg=f"{path} {key}")


# --- bad input ---


def d4rl_file(tmp_path, change):
    data = foreign.flat("...T...L..")
    change(data)
    return foreign.hdf5(tmp_path / "set.hdf5", data), foreign.npz(tmp_path / "set.npz", data)


def put(key, value):
    def change(data):
        data[key] = value(data[key]) if callable(value) else value

    return change


def at(key, index, value):
    def change(data):
        data[key] = data[key].astype(np.float64)
        data[key][index] = value

    return change


BAD = {
    "nan": (at("observations", (6, 1), np.nan), r"key 'observations': row 6 is not finite"),
    "infinite": (at("actions", (2, 0), np.inf), r"key 'actions': row 2 is not finite"),
    "too large": (at("rewards", 5, 1e300), r"key 'rewards': row 5 is not finite as float32"),
    "text": (put("rewards", lambda r: r.astype("S")), r"key 'rewards': it holds text where numbers belong"),
    "complex": (put("actions", lambda a: a + 1j), r"key 'actions': it holds values of dtype complex"),
    "short": (put("actions", lambda a: a[:9]), r"key 'actions': it has 9 rows where 10 belong"),
    "rewards per dimension": (put("rewards", np.zeros((10, 2))), r"key 'rewards': its shape is \(10, 2\)"),
    "flags of 2": (at("terminals", 4, 2), r"key 'terminals': row 4 is 2\.0; it must be 0 or 1"),
    "flags of nan": (at("timeouts", 4, np.nan), r"key 'timeouts': row 4 is nan"),
    "empty": (lambda d: d.update({k: v[:0] for k, v in d.items()}), r"key 'observations': its shape is \(0, 3\)"),
    "no width": (put("observations", np.zeros((10, 0))), r"key 'observations': its shape is \(10, 0\)"),
    "three axes": (put("observations", np.zeros((10, 2, 2))), r"key 'observations': its shape is \(10, 2, 2\)"),
    "float pictures": (put("observations", np.zeros((10, 4, 4, 3))), r"pictures must be uint8"),
    "a single value": (put("observations", np.float32(1)), r"key 'observations': its shape is \(\)"),
    "only ends": (lambda d: d.update(timeouts=np.ones(10, bool)), "it holds no transition"),
    "no actions": (lambda d: d.pop("actions"), "no known layout: it has observations"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flat_files_are_refused_with_key_and_row(tmp_path, case):
    change, message = BAD[case]
    for path in d4rl_file(tmp_path, change):
        with pytest.raises(DataError, match=message) as error:
            datasets.read(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("episode_1/rewards", np.zeros(2), r"key 'episode_1/rewards': its shape is \(2,\), but \(3,\) belongs"),
        ("episode_1/observations", np.zeros((3, 3)), r"key 'episode_1/observations': its shape is \(3, 3\)"),
        ("episode_1/actions", np.zeros((3, 5)), r"key 'episode_1/actions': its shape is \(3, 5\), but \(3, 2\)"),
        ("episode_1/actions", np.full((3, 2), 1.5), r"key 'episode_1/actions': row 0 is \[1\.5, 1\.5\]"),
        ("episode_1/rewards", np.array([0, np.nan, 0]), r"key 'episode_1/rewards': row 1 is not finite"),
        ("episode_1/observations", np.full((4, 3), np.nan), r"key 'episode_1/observations': row 0 is not finite"),
        (
            "episode_1/rewards",
            np.array([b"a", b"b", b"c"]),
            r"key 'episode_1/rewards': it holds text where numbers belong",
        ),
        ("episode_1/rewards", np.zeros(0), r"key 'episode_1/rewards': its shape is \(0,\); expected at least one row"),
        (
            "episode_1/truncations",
            np.array([0, 1, 0]),
            r"key 'episode_1/truncations': row 1 ends the.*with 1 step left",
        ),
        ("episode_1/terminations", np.array([True, False, False]), r"key 'terminated': row 5 ends the task"),
        (
            "episode_1/terminations",
            np.array([0, 0, np.nan]),
            r"key 'episode_1/terminations': row 2 is nan; it must be 0",
        ),
        ("episode_1/terminations", np.array([0, 0, 2]), r"key 'episode_1/terminations': row 2 is 2; it must be 0 or 1"),
        ("episode_1/infos/success", np.zeros(9), r"key 'episode_1/infos/success': it has 9 rows where 3 belong"),
        ("episode_1/infos/success", np.zeros((4, 2)), r"key 'episode_1/infos/success': its shape is \(4, 2\)"),
        ("episode_1/infos/success", np.full(4, np.nan), r"key 'episode_1/infos/success': row 0 is nan"),
        ("episode_1/terminations", None, r"key 'episode_1/terminations': it is missing"),
    ],
)
def test_bad_minari_files_are_refused(tmp_path, key, value, message):
    path = tmp_path / "main_data.hdf5"
    foreign.minari(path)
    with h5py.File(path, "a") as file:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value
    with pytest.raises(DataError, match=message):
        datasets.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("terminals", np.zeros(9, bool)), r"key 'terminals': row 8, the file's last, does not end its trajectory"),
        (put("observations", lambda x: x[:8]), r"key 'terminals': it has 9 rows where 8 belong"),
        (lambda d: d.update(masks=np.ones(9), rewards=np.ones(5)), r"key 'rewards': it has 5 rows where 9 belong"),
    ],
)
def test_bad_ogbench_files_are_refused(tmp_path, change, message):
    data = foreign.ogbench()
    change(data)
    with pytest.raises(DataError, match=message):
        datasets.read(foreign.npz(tmp_path / "set.npz", data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("traj_lengths", np.array([4, 4])), r"key 'traj_lengths': .* 8 rows in all, but 'states' has 7"),
        (put("traj_lengths", np.array([7, 0])), r"key 'traj_lengths': trajectory 1 has 0 rows"),
        (put("traj_lengths", np.array([8, -1])), r"key 'traj_lengths': trajectory 1 has -1 rows"),
        (put("traj_lengths", np.array([2**63 - 1] * 2)), r"have 18,446,744,073,709,551,614 rows in all, but 'states'"),
        (put("traj_lengths", np.array([4.0, 3.0])), r"key 'traj_lengths': it must list whole.*dtype is float64"),
        (put("terminals", np.arange(7) == 1), r"key 'terminals': row 1 ends the task, but not its trajectory"),
    ],
)
def test_bad_dppo_files_are_refused(tmp_path, change, message):
    data = foreign.dppo()
    change(data)
    with pytest.raises(DataError, match=message):
        datasets.read(foreign.npz(tmp_path / "set.npz", data))


def test_bad_normalisation_is_refused(tmp_path):
    np.savez(tmp_path / "normalization.npz", obs_min=np.zeros(2), obs_max=np.ones(2))
    with pytest.raises(DataError, match=r"normalization\.npz: key 'obs_min': expected \(3,\) finite numbers"):
        datasets.read(foreign.npz(tmp_path / "train.npz", foreign.dppo()))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["hdf5", "npz"])
def test_files_that_were_cut_off(tmp_path, form, part):
    data = {key: np.repeat(value, 200, 0) for key, value in foreign.flat("...T...L..").items()}
    path = getattr(foreign, form)(tmp_path / f"set.{form}", data)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(DataError, match="cannot be read"):
        datasets.read(path)


@pytest.mark.parametrize("form", ["hdf5", "npz"])
def test_files_with_changed_bytes_are_refused_or_read_whole(tmp_path, form):
    """Wherever one byte changes, nothing but a DataError comes out; an archive's checksums find every change."""
    data = {key: np.repeat(value, 20, 0) for key, value in foreign.flat("...T...L..").items()}
    path = getattr(foreign, form)(tmp_path / f"set.{form}", data)
    whole, arrays, refused = path.read_bytes(), datasets.load(path)[0], 0
    for position in np.random.default_rng(0).integers(0, len(whole), 60):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            found = datasets.load(path)[0]
        except DataError:
            refused += 1
        else:
            assert form == "hdf5" or all(np.array_equal(found[key], arrays[key]) for key in arrays)
    assert refused


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x80\x04\x95", "a pickle; nothing is unpickled"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"observations", "neither an npz nor an HDF5"),
    ],
)
def test_what_is_no_dataset_at_all(tmp_path, start, message):
    (tmp_path / "set.hdf5").write_bytes(start)
    with pytest.raises(DataError, match=rf"set\.hdf5: cannot be read, it is .*{message}"):
        datasets.read(tmp_path / "set.hdf5")


def test_objects_are_not_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    data = foreign.flat("...T...L..")
    data["rewards"] = np.array([Bomb()] * 10, object)
    np.savez(tmp_path / "set.npz", **data)
    with pytest.raises(DataError, match=r"key 'rewards': it holds pickled Python objects"):
        datasets.read(tmp_path / "set.npz")
    assert not (tmp_path / "ran").exists()


def test_sizes_beyond_memory_are_refused_before_anything_is_allocated(tmp_path, monkeypatch):
    """A zip bomb, and an HDF5 file of a few bytes that declares terabytes."""
    data = foreign.flat("...T...L..")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for key, value in data.items():
            shape = (10**12, *value.shape[1:])
            file.writestr(f"{key}.npy", foreign.member(shape, value.dtype.str, b"\0" * 10**6))
    with h5py.File(tmp_path / "bomb.hdf5", "w") as file:
        for key, value in data.items():
            file.create_dataset(key, (10**12, *value.shape[1:]), value.dtype, chunks=True)
    with h5py.File(tmp_path / "chunk.hdf5", "w") as file:
        for key, value in data.items():
            width = value.shape[1:]
            file.create_dataset(key, value.shape, value.dtype, chunks=(10**8, *width), maxshape=(None, *width))
    with h5py.File(tmp_path / "minari.hdf5", "w") as file:
        group = file.create_group("episode_0")
        for key, rows in (("observations", 2 * 10**9 + 1), ("actions", 2 * 10**9), ("rewards", 2 * 10**9)):
            group.create_dataset(key, (rows,) if key == "rewards" else (rows, 50), "f4", chunks=True)
    for name in ("bomb.npz", "bomb.hdf5", "minari.hdf5"):
        with pytest.raises(DataError, match=rf"{name}: it declares [\d,.]+ GB, but [\d,.]+ GB of memory are free"):
            datasets.read(tmp_path / name)
    monkeypatch.setattr(files, "memory", lambda: files.Memory(10**8, 10**8))
    with pytest.raises(DataError, match=r"chunk\.hdf5: it declares"):
        datasets.read(tmp_path / "chunk.hdf5")


def test_memory_is_the_least_that_any_group_leaves(tmp_path, monkeypatch):
    """Groups in groups, as Slurm makes them; what is only cached can be had."""
    machine, inner = files.memory(), tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    said = {tmp_path / "proc": "0::/job/step\n", inner / "memory.max": "max\n", inner / "memory.current": "5000\n"}
    said |= {tmp_path / "job" / "memory.max": "9000\n", tmp_path / "job" / "memory.current": "7000\n"}
    said |= {tmp_path / "job" / "memory.stat": "anon 6000\nactive_file 300\ninactive_file 700\n"}
    for path, text in said.items():
        path.write_text(text)
    monkeypatch.setattr(files, "CGROUPS", tmp_path)
    monkeypatch.setattr(files, "MEMBERSHIP", tmp_path / "proc")
    assert files.memory() == (9000, 3000)
    with pytest.raises(DataError, match="set: it declares"):
        files.admit("set", 3001)
    (tmp_path / "job" / "memory.max").write_text("max\n")
    assert files.memory().total == machine.total


def test_an_array_longer_or_shorter_than_its_header_is_damaged(tmp_path):
    for size in (30, 50):
        with zipfile.ZipFile(tmp_path / "set.npz", "w") as file:
            for key, value in foreign.flat("...T...L..").items():
                body = value.tobytes()
                body = (body * 2)[:size] if key == "rewards" else body
                file.writestr(f"{key}.npy", foreign.member(value.shape, value.dtype.str, body))
        with pytest.raises(DataError, match=r"cannot be read.*than its header says"):
            datasets.read(tmp_path / "set.npz")


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual"])
def test_hdf5_files_cannot_point_elsewhere(tmp_path, kind):
    data = foreign.flat("...T...L..")
    other = foreign.hdf5(tmp_path / "secret.hdf5", {"x": data["rewards"]})
    path = foreign.hdf5(tmp_path / "set.hdf5", {key: value for key, value in data.items() if key != "rewards"})
    with h5py.File(path, "a") as file:
        if kind == "external link":
            file["rewards"] = h5py.ExternalLink(str(other), "x")
        elif kind == "soft link":
            file["rewards"] = h5py.SoftLink("/observations")
        elif kind == "external data":
            (tmp_path / "raw").write_bytes(data["rewards"].tobytes())
            file.create_dataset("rewards", (10,), "f4", external=[(str(tmp_path / "raw"), 0, 40)])
        else:
            layout = h5py.VirtualLayout((10,), "f4")
            layout[:] = h5py.VirtualSource(str(other), "x", (10,))
            file.create_virtual_dataset("rewards", layout)
    with pytest.raises(DataError, match=r"key 'rewards': (it is a link|its data lie in other files)"):
        datasets.read(path)


def test_links_inside_minari_are_refused(tmp_path):
    foreign.minari(tmp_path / "other.hdf5")
    foreign.minari(tmp_path / "main_data.hdf5", (4,))
    with h5py.File(tmp_path / "main_data.hdf5", "a") as file:
        file["episode_1"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "episode_1")
    with pytest.raises(DataError, match=r"key 'episode_1': it is a link"):
        datasets.read(tmp_path / "main_data.hdf5")


def test_a_foreign_file_in_our_format_is_the_same_dataset(tmp_path):
    arrays, card = datasets.load(foreign.hdf5(tmp_path / "set.hdf5", foreign.flat(ENDS)))
    ours = datasets.write(tmp_path / "ours.npz", arrays, {"task": None})
    assert ours["sha256"] == card["sha256"]
    again, read = datasets.read(tmp_path / "ours.npz", task="toy/match")  # of an unknown task: accepted
    np.testing.assert_array_equal(again.state, arrays["state"])
    assert json.loads(json.dumps(read)) == read == {**ours}


def test_the_task_of_a_name(tmp_path):
    path = foreign.hdf5(tmp_path / "hopper_medium-v2.hdf5", foreign.flat(ENDS, 11, 3))
    assert datasets.read(path, task="mujoco/hopper-v4")[1]["task"] == "mujoco/hopper-v4"
    with pytest.raises(DataError, match=r"was made on mujoco/hopper-v4, not on mujoco/hopper-v5; --data\.any-task"):
        datasets.read(path, task="mujoco/hopper-v5")


def test_a_lost_minari_episode_is_missed(tmp_path):
    path = tmp_path / "main_data.hdf5"
    foreign.minari(path, (4, 3, 2))
    with h5py.File(path, "a") as file:
        del file["episode_1"]
    with pytest.raises(DataError, match=r"key 'episode_1' is missing: 'total_episodes' is 3, but the file has 2"):
        datasets.read(path)
