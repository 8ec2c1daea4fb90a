"""Dataset files: the card, the round trip, and every way a file can be bad."""

import json

import numpy as np
import pytest

from core.dataset import DataError
from core.types import EnvSpec
from envs import datasets
from envs.readers import files


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
