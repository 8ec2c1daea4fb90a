"""Mixtures of datasets: shares, whole episodes, provenance, refusals."""

import numpy as np
import pytest
from scipy.stats import chisquare

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


def test_the_recipe_of_trajectory_weighting(files, tmp_path):
    """More than floor(sigma n) transitions of the good file, then of the bad one until there are more than n."""
    (good, of_good), (bad, of_bad) = files
    parts, out = [Part(good, 0.29), Part(bad, 0.71)], tmp_path / "mix.npz"
    card = mix.mix(parts, 1000, 3, out, {}, replacement=True)
    assert card["mix"] == {"transitions": 1000, "seed": 3, "replacement": True}
    arrays, _ = datasets.load(out)
    count = card["parents"][0]["episodes"]
    whole = arrays["length"].cumsum()
    assert whole[count - 2] <= 290 < whole[count - 1]
    assert whole[-2] <= 1000 < whole[-1]
    mine = episodes(arrays)
    assert set(mine[:count]) <= set(episodes(of_good))
    assert set(mine[count:]) <= set(episodes(of_bad))
    assert len(set(mine[count:])) < len(mine[count:])  # more transitions than the file has
    np.testing.assert_array_equal(mix.sources(card), np.repeat([0, 1], [count, len(mine) - count]))
    again = mix.mix(parts, 1000, 3, tmp_path / "again.npz", {}, replacement=True)
    others = mix.mix(parts, 1000, 4, tmp_path / "others.npz", {}, replacement=True)
    without = mix.mix(parts, 1000, 3, tmp_path / "without.npz", {})
    assert again["sha256"] == card["sha256"]
    assert len({x["sha256"] for x in (card, others, without)}) == 3
    with pytest.raises(ConfigError, match=r"\d+ transitions are drawn before \S+b\.npz: take more than 2"):
        mix.mix([Part(good, 0.9), Part(bad, 0.1)], 2, 0, tmp_path / "few.npz", {}, replacement=True)


def test_drawing_again_is_uniform_over_episodes():
    """Not over transitions: a long episode comes as often as a short one.  And repeats from the first draws on."""
    length = np.array([1, 9, 2, 5])
    chosen = mix.draw_again(length, 40_000, np.random.default_rng(0))
    assert length[chosen].sum() > 40_000 >= length[chosen[:-1]].sum()
    assert chisquare(np.bincount(chosen)).pvalue > 1e-4
    np.testing.assert_array_equal(mix.draw_again(length, 40_000, np.random.default_rng(0)), chosen)
    early = [mix.draw_again(length, 12, np.random.default_rng(seed)) for seed in range(50)]
    assert any(len(set(few)) < len(few) for few in early)
    assert all(length[few].sum() > 12 >= length[few[:-1]].sum() for few in early)


def test_what_is_no_mixture_has_no_sources(files):
    _, card = datasets.load(files[0][0])
    assert mix.sources(card) is None
    parents = [{"episodes": 39}, {"episodes": 2}]
    assert mix.sources({"episodes": 40, "mix": {}, "parents": parents}) is None


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
