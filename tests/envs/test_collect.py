"""Collections: the same bits for any number of workers, resumable, cut at whole episodes, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from core.config import ConfigError, UnknownName
from envs import collect, datasets
from envs.collect import Recipe

RECIPE = Recipe("ogbench/pointmaze-medium", episodes=40, noise=0.3, seed=5, max_steps=12)


def made(recipe, out, workers=2, report=lambda done: None):
    return collect.collect(*collect.scripted(recipe), out, workers, {}, report)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "maze.npz"
    seen = []
    card = made(RECIPE, out, 2, seen.append)
    return out, card, seen


class Stop(Exception):
    pass


def stop(done):
    """Stops a collection once something was played."""
    if done:
        raise Stop


def test_card_and_arrays(whole):
    out, card, seen = whole
    arrays, read = datasets.load(out)
    assert read == card
    assert card["recipe"]["noise"] == 0.3
    assert card["recipe"]["kind"] == "navigate"
    assert card["players"] == [
        {"player": "OGBench's oracle, navigate", "episodes": 40, "transitions": 480, "mean return": 0.0}
    ]
    assert arrays["length"].tolist() == [12] * 40
    assert arrays["state"].shape == (40 * 13, 2)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 480)
    assert not out.with_name(out.name + ".parts").exists()


def test_the_published_sizes_are_the_default():
    recipe, source = collect.scripted(Recipe("ogbench/pointmaze-giant"))
    assert (recipe.episodes, recipe.max_steps, recipe.noise) == (500, 2000, 0.5)
    assert collect.measure(recipe, source) == (1_000_000, "transitions")
    recipe, _ = collect.scripted(Recipe("ogbench/cube-triple", kind="noisy", transitions=500))
    assert (recipe.episodes, recipe.transitions, recipe.max_steps, recipe.noise) == (0, 500, 1000, 0.1)


def test_one_worker_makes_the_same_bits(whole, tmp_path):
    assert made(RECIPE, tmp_path / "maze.npz", 1)["sha256"] == whole[1]["sha256"]


def test_a_stopped_collection_goes_on(whole, tmp_path):
    out, parts = tmp_path / "maze.npz", tmp_path / "maze.npz.parts"
    with pytest.raises(Stop):
        made(RECIPE, out, 1, stop)
    kept = sorted(parts.glob("*-*.npz"))
    assert kept
    times = [path.stat().st_mtime_ns for path in kept]
    first = []
    with pytest.raises(Stop):  # what was finished is reported before anything is played
        made(RECIPE, out, 1, lambda done: (first.append(done), stop(done)))
    assert first[0] == 36
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert made(RECIPE, out, 1)["sha256"] == whole[1]["sha256"]


def test_a_killed_collection_goes_on(tmp_path):
    recipe = replace(RECIPE, episodes=320, max_steps=60)
    out, parts = tmp_path / "maze.npz", tmp_path / "maze.npz.parts"
    script = (
        "from pathlib import Path; from envs import collect; from envs.collect import Recipe; "
        f"collect.collect(*collect.scripted({recipe!r}), Path({str(out)!r}), 1, {{}})"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while not list(parts.glob("*-*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = []
    card = made(recipe, out, 2, first.append)
    assert 0 < first[0] < 19_200
    player = collect.scripted(recipe)[1].build()
    assert card["sha256"] == datasets.digest(player.play(0, range(320)))
    player.close()


def test_a_damaged_block_is_played_again(whole, tmp_path):
    out = tmp_path / "maze.npz"
    with pytest.raises(Stop):
        made(RECIPE, out, 1, stop)
    block = next((tmp_path / "maze.npz.parts").glob("*-*.npz"))
    block.write_bytes(block.read_bytes()[:500])
    assert made(RECIPE, out, 2)["sha256"] == whole[1]["sha256"]


class Counting:
    """A player whose episodes have the lengths 1, 2, 3, 1, 2, ..., and whose states are the episode's number."""

    def play(self, who, numbers):
        length = np.array([1 + n % 3 for n in numbers], np.int32)
        state = np.repeat(np.array(numbers, np.float32), length + 1)[:, None]
        rows = len(state)
        return {
            "state": state, "action": np.zeros((rows, 1), np.float32), "reward": np.full(rows, who, np.float32),
            "terminated": np.zeros(rows, bool), "length": length, "success": np.zeros(len(length), np.float32),
        }  # fmt: skip

    def close(self):
        pass


TWO = collect.Source([{"player": "a"}, {"player": "b"}], Counting, steps=3)


@pytest.mark.parametrize("workers", [1, 3])
def test_transitions_are_whole_episodes_and_shares_are_equal(tmp_path, workers):
    """Two players who take turns with the numbers; each stops behind the episode that reaches half of 100."""
    out = tmp_path / "counted.npz"
    card = collect.collect(Recipe("toy/match", noise=0.0, transitions=100), TWO, out, workers, {})
    arrays, _ = datasets.load(out)
    first = np.cumsum(arrays["length"] + 1) - (arrays["length"] + 1)
    played, expected = arrays["state"][first, 0].astype(int).tolist(), []
    for who, player in enumerate(card["players"]):
        numbers = list(range(who, 200, 2))
        count = int(np.searchsorted(np.cumsum([1 + n % 3 for n in numbers]), 50)) + 1
        expected += numbers[:count]
        assert (player["episodes"], player["transitions"]) == (count, sum(1 + n % 3 for n in numbers[:count]))
    assert played == expected


class Shrinking(Counting):
    """Episodes of three transitions, and from the fifth on of one."""

    def play(self, who, numbers):
        return super().play(who, [2 if n < 5 else 0 for n in numbers])


def test_more_is_played_where_episodes_turn_out_shorter(tmp_path):
    source = collect.Source([{"player": "a"}], Shrinking, steps=3)
    card = collect.collect(Recipe("toy/match", noise=0.0, transitions=40), source, tmp_path / "x.npz", 3, {})
    assert (card["episodes"], card["transitions"]) == (5 + 25, 40)


def test_episodes_are_dealt_out_evenly(tmp_path):
    three = TWO._replace(cards=[*TWO.cards, {"player": "c"}])
    card = collect.collect(Recipe("toy/match", noise=0.0, episodes=11), three, tmp_path / "dealt.npz", 1, {})
    assert [player["episodes"] for player in card["players"]] == [4, 4, 3]
    assert card["episodes"] == 11


def test_blocks_grow_with_the_collection_and_not_with_the_workers():
    size = collect._block
    assert size(Recipe("x", episodes=1), 1000, 1) == 1
    assert size(Recipe("x", episodes=1000), 1000, 1) == 2
    assert size(Recipe("x", episodes=1000), 1000, 16) == 16
    assert size(Recipe("x", transitions=10_000), 1000, 16) == 1
    assert size(Recipe("x", episodes=5000), 200, 1) == 12


def test_refusals(whole, tmp_path):
    def refused(match, recipe, workers=1, out="x.npz", kind=ConfigError):
        with pytest.raises(kind, match=match):
            made(recipe, tmp_path / out, workers)

    refused("max_steps 900", Recipe("metaworld/reach", 3, max_steps=900))
    refused("--noise nan", Recipe("metaworld/reach", 3, noise=float("nan")))
    refused("--noise -1", Recipe("metaworld/reach", 3, noise=-1.0))
    refused("--episodes -1", Recipe("metaworld/reach", -1))
    refused("not both", Recipe("metaworld/reach", 3, transitions=3))
    refused("workers 0", RECIPE, workers=0)
    refused("must end in .npz", RECIPE, out="x.hdf5")
    refused("--kind is for", Recipe("metaworld/reach", 3, kind="play"))
    refused("nearest: navigate, stitch", Recipe("ogbench/pointmaze-medium", kind="play"), kind=UnknownName)
    refused("collect ogbench/cube-single --kind noisy", Recipe("ogbench/cube-single-noisy-v0"))
    refused("no scripted expert and no oracle", Recipe("ogbench/antsoccer-arena"))
    refused("train one \\(rheostat train sac ogbench/humanoid-directed\\)", Recipe("ogbench/humanoidmaze-large"))
    refused("no scripted expert and no oracle", Recipe("ogbench/pointmaze-medium-singletask"))
    refused("--run RUN or --policy FILE", Recipe("toy/match", 3))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="exists"):
        made(RECIPE, whole[0])
    with pytest.raises(ConfigError, match="2 policies cannot share 1"):
        collect.collect(Recipe("toy/match", 1, 0.0), TWO, tmp_path / "x.npz", 1, {})
    parts = tmp_path / "x.npz.parts"
    parts.mkdir()
    (parts / "recipe.json").write_text(json.dumps({"task": "another"}))
    refused("another collection", RECIPE)


def test_ants_are_walked_through_their_mazes_by_ours_or_by_another_expert(tmp_path):
    from experiments.collect import of_weights

    ours = made(Recipe("ogbench/antmaze-medium", episodes=1, max_steps=20, kind="stitch"), tmp_path / "ours.npz", 1)
    assert ours["players"][0]["player"] == "OGBench's oracle, stitch"
    assert ours["players"][0]["expert"]["player"] == "weights in ant-directed.npz"
    recipe = Recipe("ogbench/antmaze-medium", episodes=1, max_steps=20)
    given, _ = of_weights(recipe, collect.EXPERTS / "ant-directed.npz", "", "ours")
    assert (given.kind, given.noise, given.max_steps) == ("navigate", 0.2, 20)
    small = tmp_path / "small.npz"
    np.savez(small, w0=np.zeros((8, 27), np.float32), b0=np.zeros(8, np.float32))
    with pytest.raises(ConfigError, match="ogbench/ant-directed has \\(29,\\)"):
        of_weights(recipe, small, "relu", "")
