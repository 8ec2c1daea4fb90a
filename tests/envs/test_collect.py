"""Collections from the scripted experts: the same bits in any order, resumable, refusals."""

import json

import numpy as np
import pytest

from core.config import ConfigError
from envs import collect, datasets
from envs.collect import Recipe

RECIPE = Recipe("metaworld/reach", episodes=7, noise=0.3, seed=5, max_steps=12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "reach.npz"
    seen = []
    card = collect.collect(RECIPE, out, 2, {}, seen.append)
    return out, card, seen


class Stop(Exception):
    pass


def stop(done):
    """Stops a collection once something was played."""
    if done:
        raise Stop


def test_card_and_arrays(whole):
    out, card, seen = whole
    arrays, _ = datasets.load(out)
    assert card["recipe"]["noise"] == 0.3
    assert arrays["length"].tolist() == [12] * 7
    assert arrays["state"].shape == (7 * 13, 39)
    assert seen[0] == 0
    assert seen[-1] == 7
    assert not out.with_name(out.name + ".parts").exists()


def test_episodes_depend_on_seed_and_number_only(whole):
    arrays, _ = datasets.load(whole[0])
    alone = collect.Player(RECIPE).play(range(3, 4))
    np.testing.assert_array_equal(alone["state"], arrays["state"][3 * 13 : 4 * 13])
    np.testing.assert_array_equal(alone["action"], arrays["action"][3 * 13 : 4 * 13])
    assert not np.array_equal(arrays["state"][:13], alone["state"])


def test_the_stored_action_is_the_noisy_one_that_was_executed(whole):
    arrays, _ = datasets.load(whole[0])
    from envs.metaworld import expert

    policy, state = expert("reach"), arrays["state"][0].astype(np.float64)
    intended = np.clip(policy.get_action(state), -1, 1)
    assert 0.01 < np.abs(arrays["action"][0] - intended).max() < 2
    assert np.abs(arrays["action"]).max() <= 1


def test_a_stopped_collection_goes_on(whole, tmp_path, monkeypatch):
    out = tmp_path / "reach.npz"
    parts = tmp_path / "reach.npz.parts"

    with pytest.raises(Stop):
        collect.collect(RECIPE, out, 1, {}, stop)
    kept = sorted(parts.glob("*.npz"))
    assert kept
    times = [path.stat().st_mtime_ns for path in kept]
    first = []
    with pytest.raises(Stop):  # what was finished is reported before anything is played
        collect.collect(RECIPE, out, 1, {}, lambda done: (first.append(done), stop(done)))
    assert first[0] == 5
    assert [path.stat().st_mtime_ns for path in kept] == times
    card = collect.collect(RECIPE, out, 1, {})
    assert card["sha256"] == whole[1]["sha256"]


def test_a_damaged_block_is_played_again(whole, tmp_path):
    out = tmp_path / "reach.npz"

    with pytest.raises(Stop):
        collect.collect(RECIPE, out, 1, {}, stop)
    block = next((tmp_path / "reach.npz.parts").glob("*.npz"))
    block.write_bytes(block.read_bytes()[:500])
    assert collect.collect(RECIPE, out, 2, {})["sha256"] == whole[1]["sha256"]


def test_refusals(whole, tmp_path):
    with pytest.raises(ConfigError, match="max_steps 900"):
        collect.collect(Recipe("metaworld/reach", 3, max_steps=900), tmp_path / "long.npz", 1, {})
    with pytest.raises(ConfigError, match="--noise nan"):
        collect.check(Recipe("metaworld/reach", 3, noise=float("nan")))
    with pytest.raises(ConfigError, match="workers 0"):
        collect.collect(RECIPE, tmp_path / "x.npz", 0, {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="exists"):
        collect.collect(RECIPE, whole[0], 1, {})
    with pytest.raises(ConfigError, match="toy/match has no scripted expert; the tasks of metaworld"):
        collect.check(Recipe("toy/match", 3))
    with pytest.raises(ConfigError, match="episodes 0"):
        collect.check(Recipe("metaworld/reach", 0))
    parts = tmp_path / "x.npz.parts"
    parts.mkdir()
    (parts / "recipe.json").write_text(json.dumps({"task": "another"}))
    with pytest.raises(ConfigError, match="another collection"):
        collect.collect(RECIPE, tmp_path / "x.npz", 1, {})
