"""Mixtures of datasets: shares, whole episodes, provenance, refusals."""

import numpy as np
import pytest

from core.config import ConfigError
from core.dataset import DataError
from envs import datasets, mix
from envs.mix import Part
from tests.conftest import match_arrays


def write(path, episodes, task="toy/match", seed=0, **changes):
    """toy/match with episodes of 3 to 7 transitions; every state says which."""
    rng = np.random.default_rng(seed)
    length = rng.integers(3, 8, episodes).astype(np.int32)
    rows = int((length + 1).sum())
    arrays = {key: value[:rows] for key, value in match_arrays(seed=seed).items() if len(value) >= rows}
    arrays["state"] = np.repeat(np.arange(episodes, dtype=np.float32), length + 1)[:, None] * np.ones(2, np.float32)
    arrays |= {"length": length, "success": rng.random(episodes).astype(np.float32), **changes}
    datasets.write(path, arrays, {"task": task, "made by": "the test"})
    return arrays


@pytest.fixture
def files(tmp_path):
    paths = tmp_path / "a.npz", tmp_path / "b.npz"
    return [
        (path, write(path, episodes, seed=i)) for i, (path, episodes) in enumerate(zip(paths, (40, 20), strict=True))
    ]


def episodes(arrays):
    ends = np.cumsum(arrays["length"] + 1)
    keys = datasets.ARRAYS[:4]
    spans = [slice(end - n - 1, end) for n, end in zip(arrays["length"], ends, strict=True)]
    return [tuple(arrays[key][span].tobytes() for key in keys) for span in spans]


def test_shares_and_whole_episodes(files, tmp_path):
    (a, of_a), (b, of_b) = files
    out = tmp_path / "mix.npz"
    seen = []
    card = mix.mix([Part(a, 3.0), Part(b, 1.0)], 100, 0, out, {"time": "now"}, seen.append)
    assert seen == [card["parents"][0]["transitions"], card["transitions"]]
    arrays, _ = datasets.load(out)
    count = card["parents"][0]["episodes"]
    mine = episodes(arrays)
    assert set(mine[:count]) <= set(episodes(of_a))
    assert set(mine[count:]) <= set(episodes(of_b))
    assert len(set(mine)) == len(mine)  # without replacement
    for parent, share, path in zip(card["parents"], (0.75, 0.25), (a, b), strict=True):
        assert parent["weight"] == share
        assert parent["share"] == pytest.approx(share, abs=0.05)
        assert 0 <= parent["transitions"] - 100 * share < 7
        assert parent["card"]["made by"] == "the test"
        assert parent["sha256"] == datasets.load(path)[1]["sha256"]
    for parent, (_, source) in zip(np.split(arrays["success"], [count]), files, strict=True):
        assert set(parent) <= set(source["success"])
    again = mix.mix([Part(a, 3.0), Part(b, 1.0)], 100, 0, tmp_path / "again.npz", {})
    other = mix.mix([Part(a, 3.0), Part(b, 1.0)], 100, 1, tmp_path / "other.npz", {})
    assert again["sha256"] == card["sha256"] != other["sha256"]


def test_more_than_there_is_repeats_evenly(files, tmp_path):
    (a, _), (b, of_b) = files
    want = int(2.5 * of_b["length"].sum())
    card = mix.mix([Part(a, 1e-3), Part(b, 1.0)], want, 0, tmp_path / "mix.npz", {})
    arrays, _ = datasets.load(tmp_path / "mix.npz")
    first = np.cumsum(arrays["length"] + 1) - (arrays["length"] + 1)
    numbers = arrays["state"][first, 0].astype(int)[card["parents"][0]["episodes"] :]
    counts = np.bincount(numbers, minlength=20)
    assert set(counts) == {2, 3}
    assert card["parents"][1]["different episodes"] == 20


def test_draw_stops_at_the_first_that_is_enough():
    length = np.array([5, 5, 5, 5])
    rng = np.random.default_rng(0)
    assert len(mix.draw(length, 10, rng)) == 2
    assert len(mix.draw(length, 11, rng)) == 3
    assert sorted(mix.draw(length, 20, rng)) == [0, 1, 2, 3]


def test_refusals(files, tmp_path):
    (a, _), (b, _) = files
    for texts, match in [
        (["a.npz", "b.npz:1"], "not FILE:WEIGHT"),
        (["a.npz:x", "b.npz:1"], "not FILE:WEIGHT"),
        (["a.npz:0", "b.npz:1"], "above zero"),
        (["a.npz:nan", "b.npz:1"], "above zero"),
        (["a.npz:1"], "at least two"),
        (["a.npz:1", "./a.npz:1"], "at least two"),
    ]:
        with pytest.raises(ConfigError, match=match):
            mix.parse(texts)
    parts, out = mix.parse([f"{a}:0.5", f"{b}:0.5"]), tmp_path / "mix.npz"
    with pytest.raises(ConfigError, match="transitions 1 >= 2"):
        mix.mix(parts, 1, 0, out, {})
    with pytest.raises(ConfigError, match="exists"):
        mix.mix(parts, 10, 0, a, {})
    with pytest.raises(DataError, match="no such dataset"):
        mix.mix([parts[0], Part(tmp_path / "c.npz", 1)], 10, 0, out, {})
    c = tmp_path / "c.npz"
    write(c, 5, task="toy/pointmass")
    with pytest.raises(ConfigError, match="was made on toy/pointmass"):
        mix.mix([parts[0], Part(c, 1)], 10, 0, out, {})
    nameless = tmp_path / "nameless.npz"
    write(nameless, 5, task=None)
    for pair in ([parts[0], Part(nameless, 1)], [Part(nameless, 1), parts[0]]):
        with pytest.raises(ConfigError, match=r"data convert \S+nameless\.npz --task toy/match --out FILE`"):
            mix.mix(pair, 10, 0, out, {})
    rows = int((np.random.default_rng(0).integers(3, 8, 5) + 1).sum())
    c.unlink()
    write(c, 5, action=np.zeros((rows, 3), np.float32))
    with pytest.raises(DataError, match="key 'action' has rows"):
        mix.mix([parts[0], Part(c, 1)], 10, 0, out, {})
    assert not out.exists()
