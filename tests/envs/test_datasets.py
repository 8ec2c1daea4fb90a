"""Dataset files: the card, the round trip, and every way a file can be bad."""

import json

import numpy as np
import pytest

from core import dataset as ds
from core.dataset import DataError
from core.types import EnvSpec
from envs import datasets, measures
from envs.readers import files
from tests.envs import foreign


@pytest.fixture
def path(tmp_path, arrays):
    file = tmp_path / "set.npz"
    datasets.write(file, arrays, {"task": "toy/match"})
    return file


def rewrite(path, **changes):
    """Change arrays in a file and give it a card with the right hash."""
    arrays, card = datasets.load(path)
    arrays.update(changes)
    card["sha256"] = datasets.digest(arrays)
    np.savez(path, card=np.array(json.dumps(card)), **arrays)


def test_round_trip_and_card(path, arrays):
    dataset, card = datasets.read(path, EnvSpec("toy/match", (2,), 2))
    np.testing.assert_array_equal(dataset.state, arrays["state"])
    assert card["task"] == "toy/match"
    assert card["episodes"] == 40
    assert card["transitions"] == 400
    returns = arrays["reward"].reshape(40, 11)[:, :10].sum(1)
    assert card["return"]["mean"] == pytest.approx(returns.mean(), rel=1e-5)
    assert card["return"]["median"] == pytest.approx(np.median(returns), rel=1e-5)
    assert card["action_range"] == [arrays["action"].min(), arrays["action"].max()]
    assert not list(path.parent.glob("*.part"))


def pairs(state, action, lengths=(3, 2), reward=None):
    """A small dataset in our layout."""
    rows = sum(lengths) + len(lengths)
    state, action = (np.asarray(x, np.float32).reshape(rows, -1) for x in (state, action))
    return {
        "state": state, "action": action,
        "reward": np.zeros(rows, np.float32) if reward is None else np.asarray(reward, np.float32),
        "terminated": np.zeros(rows, bool), "length": np.asarray(lengths, np.int32),
        "success": np.zeros(len(lengths), np.float32),
    }  # fmt: skip


def test_measures_of_returns():
    """TQ by D4RL's constants of the task, PSV by hand: returns 0, 1, 2, 5 are 0, 0.2, 0.4, 1, their mean 0.4."""
    reward = np.zeros((4, 3))
    reward[:, 0] = 0, 1, 2, 5
    reward[:, 2] = 7  # behind the last transition
    arrays = pairs(np.arange(12), np.zeros(12), (2,) * 4, reward.ravel())
    found = datasets.describe(arrays, "mujoco/hopper-v5")["measures"]
    low, high = -20.272305, 3234.3
    assert found["TQ"] == pytest.approx((2 - low) / (high - low))
    assert found["TQ reference"] == {"random": low, "expert": high, "source": "Farama-Foundation/D4RL d4rl/infos.py"}
    assert found["PSV"] == pytest.approx(0.6**2 / 4)
    assert "TQ" not in datasets.describe(arrays, "toy/match")["measures"]
    assert datasets.describe({**arrays, "reward": 0 * arrays["reward"]})["measures"]["PSV"] == 0


def test_unique_pairs_by_hand():
    """The state ranges over 0 to 10, in steps of 0.1; the action does not vary; final states do not count."""
    arrays = pairs([0, 10, 0.04, 77, 5, 5.06, 88], [0.3, 0.3, 0.3, 0, 0.3, 0.3, 0])
    found = datasets.describe(arrays)["measures"]
    assert found["unique pairs"] == 4  # 0.04 is 0
    assert found["unique share"] == 0.8
    more = pairs([0, 10, 0.04, 77, 5, 5.06, 88], [0.3, 0.3, -0.3, 0, 0.3, 0.3, 0])
    assert datasets.describe(more)["measures"]["unique pairs"] == 5


@pytest.mark.parametrize("width", [1, 3, 20])
def test_hashes_count_as_a_set_does(width):
    rng = np.random.default_rng(width)
    state, action = rng.integers(0, 101, (40_000, width)) / 10, rng.integers(-1, 2, (40_000, 2))
    state[rng.permutation(40_000)[:20_000]] = state[:20_000]
    arrays = pairs(state, action, (19_999, 19_999))
    kept = np.delete(np.concatenate([state, action], 1), [19_999, 39_999], 0)
    assert datasets.describe(arrays)["measures"]["unique pairs"] == len(np.unique(np.rint(10 * kept), axis=0))


def test_pictures_and_discrete_actions_are_counted_as_they_are():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (3, 5, 5, 3), np.uint8)
    picture[2] = picture[1]
    picture[2, 4, 4, 2] ^= 1  # the last byte
    rows = [0, 1, 2, 1, 0, 0, 0]
    arrays = {**pairs(np.zeros(7), np.zeros(7)), "state": picture[rows], "action": np.int32([0, 0, 0, 9, 0, 1, 9])}
    assert datasets.describe(arrays)["measures"]["unique pairs"] == 4


def test_coverage_is_on_the_grid_of_the_reference():
    reference = datasets.index(pairs([0, 10, 5, 0, 0, 2.5, 0], np.zeros(7)))
    of = lambda *state: measures.coverage(datasets.index(pairs(state, np.zeros(7))), reference)  # noqa: E731
    assert measures.coverage(reference, reference) == 1
    assert of(0, 0.01, -0.02, 0, 0.03, 0.04, 0) == 0.25  # one pair of four
    assert of(1, 2, 3, 0, 4, 99, 0) == 1.25  # beyond the range, too
    with pytest.raises(DataError, match="key 'state'"):
        measures.coverage(datasets.index(pairs(np.zeros(14), np.zeros(7))), reference)


def test_an_unfinished_tail_is_an_episode_without_an_end(tmp_path):
    """A flat file: ended by the task, by the clock (its last row starts nothing), and cut short by the file's end."""
    data = foreign.flat("..T...L..T....")
    arrays, card = datasets.load(foreign.npz(tmp_path / "set.npz", data))
    assert arrays["length"].tolist() == [3, 3, 3, 3]
    rows = [[0, 1, 2], [3, 4, 5], [7, 8, 9], [10, 11, 12]]  # not 6, the clock's, and not 13, the file's last
    returns = [data["rewards"][row].sum(dtype=np.float64) for row in rows]
    dataset = datasets.index(arrays)
    np.testing.assert_allclose(ds.episodes(dataset).ret, returns, rtol=1e-12)
    assert card["return"]["mean"] == pytest.approx(np.mean(returns))
    assert dataset.row[dataset.terminated[dataset.row]].tolist() == [2, 10]
    assert card["terminated"] == 2


def test_missing(tmp_path):
    with pytest.raises(DataError, match=r"no\.npz: no such dataset.*`rheostat collect --help`"):
        datasets.read(tmp_path / "no.npz")


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_cut_off(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"set\.npz: cannot be read"):
        datasets.read(path)


def test_missing_key(path):
    with np.load(path) as file:
        kept = {k: file[k] for k in file.files if k != "reward"}
    np.savez(path, **kept)
    with pytest.raises(DataError, match="key 'reward' is missing"):
        datasets.read(path)


def test_changed_arrays(path):
    with np.load(path) as file:
        kept = {k: file[k] for k in file.files}
    kept["reward"] = kept["reward"] + 1
    np.savez(path, **kept)
    with pytest.raises(DataError, match="hash on its card"):
        datasets.read(path)


def test_nan_names_the_row(path, arrays):
    reward = arrays["reward"].copy()
    reward[17] = np.nan
    rewrite(path, reward=reward)
    with pytest.raises(DataError, match=r"set\.npz: key 'reward': row 17 is not finite"):
        datasets.read(path)


def test_wrong_lengths(path):
    rewrite(path, length=np.full(39, 10, np.int32))
    with pytest.raises(DataError, match=r"39 episodes need 429 rows.*'state' has 440"):
        datasets.read(path)


def test_wrong_dtype(path, arrays):
    rewrite(path, state=arrays["state"].astype(np.float64))
    with pytest.raises(DataError, match="key 'state': dtype float64"):
        datasets.read(path)


def test_pickles_are_not_read(path, arrays):
    rewrite(path)
    with np.load(path) as file:
        kept = {k: file[k] for k in file.files}
    kept["state"] = np.array([{"a": 1}], dtype=object)
    np.savez(path, **kept)
    with pytest.raises(DataError, match="key 'state': it holds pickled Python objects"):
        datasets.read(path)


def test_a_declared_size_beyond_memory(path, monkeypatch):
    monkeypatch.setattr(files, "memory", lambda: files.Memory(3000, 3000))
    with pytest.raises(DataError, match=r"set\.npz: it declares .* GB of memory are free"):
        datasets.read(path)


def test_a_single_value_where_an_array_belongs(path):
    with np.load(path) as file:
        kept = {k: file[k] for k in file.files}
    np.savez(path, **{**kept, "length": np.int32(400)})
    with pytest.raises(DataError, match=r"key 'length': its shape is \(\)"):
        datasets.read(path)


def test_a_task_that_ends_in_mid_episode_is_refused(path, arrays):
    terminated = arrays["terminated"].copy()
    terminated[[9, 13]] = True
    rewrite(path, terminated=terminated)
    with pytest.raises(DataError, match="key 'terminated': row 13 ends the task"):
        datasets.read(path)


@pytest.mark.parametrize("success", [np.zeros(3, np.float32), np.full(40, np.nan, np.float32), np.zeros(40)])
def test_success_is_one_number_per_episode(path, success):
    rewrite(path, success=success)
    with pytest.raises(DataError, match="key 'success'"):
        datasets.read(path)


def test_a_card_that_says_nothing_is_refused(path):
    arrays, _ = datasets.load(path)
    np.savez(path, card=np.array("[1]"), **arrays)
    with pytest.raises(DataError, match="its card names no task"):
        datasets.read(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)
    with pytest.raises(DataError, match="cannot be read"):
        datasets.read(path)


def test_another_task(path):
    with pytest.raises(DataError, match=r"key 'action': rows of shape \(2,\), but other has \(3,\)"):
        datasets.read(path, EnvSpec("other", (2,), 3))


def test_bad_arrays_are_not_written(tmp_path, arrays):
    with pytest.raises(DataError, match="key 'action'"):
        datasets.write(tmp_path / "new.npz", {**arrays, "action": 3 * arrays["action"]}, {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_half_written(tmp_path, arrays, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DataError, match="No space left"):
        datasets.write(tmp_path / "new.npz", arrays, {})
    assert not list(tmp_path.iterdir())
