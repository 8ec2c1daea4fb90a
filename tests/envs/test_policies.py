"""Policies from weights: both layouts by hand, boxes, refusals, and published agents' returns where the files lie."""

import functools
import itertools
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from core.config import ConfigError
from core.types import EnvSpec, Observation
from envs import policies
from envs.players import Rollouts
from envs.registry import Options
from tests.envs import foreign

SPEC = EnvSpec("toy/match", (2,), 2)
AGENTS = Path(__file__).parents[3] / "shared" / "data" / "mujoco_policies"


def write(folder, **arrays):
    path = folder / "policy.npz"
    np.savez(path, **arrays)
    return path


def layers(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    draw = [(rng.normal(size=(b, a)), rng.normal(size=b)) for a, b in itertools.pairwise(sizes)]
    return [(w.astype(np.float32), b.astype(np.float32)) for w, b in draw]


def observed(state):
    return Observation(np.asarray(state, np.float32), None, None, None)


STATE = np.array([[0.3, -2.0], [5.0, 0.1], [0.0, 0.0]])


def test_squashed_layout(tmp_path):
    (w0, b0), (w1, b1), (w2, b2) = layers(2, 5, 4, 2)
    path = write(tmp_path, **{
        "actor.latent_pi.0.weight": w0, "actor.latent_pi.0.bias": b0, "actor.latent_pi.2.weight": w1,
        "actor.latent_pi.2.bias": b1, "actor.mu.weight": w2, "actor.mu.bias": b2,
        "actor.log_std.weight": w2, "actor.log_std.bias": b2,
    })  # fmt: skip
    hidden = STATE.T
    for w, b in ((w0, b0), (w1, b1)):
        hidden = np.maximum(w @ hidden + b[:, None], 0)
    expected = np.tanh(w2 @ hidden + b2[:, None]).T
    policy = policies.WeightsPolicy(path, "", "toy/match", SPEC)
    np.testing.assert_allclose(policy.act(observed(STATE)), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="leave --activation out"):
        policies.load(path, "tanh")


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("stored", [True, False])
def test_linear_layout(tmp_path, activation, stored):
    (w0, b0), (w1, b1) = layers(2, 5, 2)
    mean, var = np.array([0.5, -1.0]), np.array([4.0, 0.0])
    more = {"activation": activation} if stored else {}
    path = write(tmp_path, w0=w0, b0=b0, w1=w1, b1=b1, obs_mean=mean, obs_var=var, **more)
    x = np.clip((STATE - mean) / np.sqrt(var + 1e-8), -10, 10)
    assert np.abs(x).max() == 10
    act = np.tanh if activation == "tanh" else lambda y: np.maximum(y, 0)
    expected = np.clip(act(x @ w0.T + b0) @ w1.T + b1, -1, 1)
    policy = policies.WeightsPolicy(path, "" if stored else activation, "toy/match", SPEC)
    np.testing.assert_allclose(policy.act(observed(STATE)), expected, atol=1e-5)


def test_one_linear_layer_needs_no_activation(tmp_path):
    path = write(tmp_path, w0=np.array([[0.5, 0.0], [0.0, 9.0]], np.float32), b0=np.array(0))
    policy = policies.WeightsPolicy(path, "", "toy/match", SPEC)
    np.testing.assert_allclose(policy.act(observed([[0.4, 0.4]])), [[0.2, 1.0]])


def test_linear_outputs_are_in_the_tasks_box(tmp_path):
    """Gymnasium's InvertedPendulum takes [-3, 3]: an output of 1.5 is half of it, and 4 is clipped."""
    path = write(tmp_path, w0=np.eye(1, 4, dtype=np.float32), b0=np.zeros(1, np.float32))
    policy = policies.WeightsPolicy(path, "", "mujoco/invertedpendulum-v5", EnvSpec("p", (4,), 1))
    np.testing.assert_allclose(policy.act(observed([[1.5, 0, 0, 0], [-4, 0, 0, 0]])), [[0.5], [-1.0]])


def test_refusals(tmp_path):
    (w0, b0), (w1, b1) = layers(2, 5, 2)

    def refused(match, activation="relu", **arrays):
        with pytest.raises(ConfigError, match=match):
            policies.WeightsPolicy(write(tmp_path, **arrays), activation, "toy/match", SPEC)

    good = {"w0": w0, "b0": b0, "w1": w1, "b1": b1}
    refused("does not say which activation", activation="", **good)
    refused("key 'b1' is missing", **{k: v for k, v in good.items() if k != "b1"})
    refused("no layout that is known", weights=w0)
    refused("does not fit its bias or the next layer", **{**good, "w1": w1[:, :3]})
    refused("does not fit its bias or the next layer", **{**good, "b0": b0[:3]})
    refused("key 'w1'.*not finite", **{**good, "w1": np.full_like(w1, np.nan)})
    refused("key 'w1'", **{**good, "w1": np.array(["a", "b"])})
    refused("obs_mean", **good, obs_mean=np.zeros(3), obs_var=np.ones(3))
    refused("obs_var' is missing", **good, obs_mean=np.zeros(2))
    refused(r"maps states \(2,\) to actions \(1,\); toy/match has \(2,\) and \(2,\)",
            w0=np.zeros((1, 2), np.float32), b0=np.zeros(1, np.float32))  # fmt: skip
    refused("pickled Python objects", **{**good, "w0": np.array([{}], object)})
    path = write(tmp_path, **good, activation="tanh")
    with pytest.raises(ConfigError, match="it says activation tanh, not relu"):
        policies.load(path, "relu")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigError, match="cut off or damaged"):
        policies.load(path)
    with pytest.raises(ConfigError, match="no policy can be read there"):
        policies.load(tmp_path / "nothing.npz")


def test_an_array_beyond_memory_is_refused_before_it_is_unpacked(tmp_path):
    """A zip bomb: a few bytes that declare terabytes."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w0.npy", foreign.member((10**12, 2), body=b"\0" * 10**6))
        file.writestr("b0.npy", foreign.member((2,), body=b"\0" * 8))
    with pytest.raises(ConfigError, match=r"bomb\.npz: it declares [\d,.]+ GB, but [\d,.]+ GB of memory are free"):
        policies.load(tmp_path / "bomb.npz")


@pytest.mark.parametrize("kind", ["pickle", "hdf5", "npy"])
def test_other_files_are_refused_in_our_own_words(tmp_path, kind):
    path = tmp_path / "policy.npz"
    if kind == "hdf5":
        foreign.hdf5(path, {"model": np.zeros((2, 2))})
    elif kind == "npy":
        np.save(tmp_path / "policy.npy", np.array([{}], object))
        (tmp_path / "policy.npy").rename(path)
    else:
        path.write_bytes(pickle.dumps({"w0": 1}))
    message = {"pickle": "it is a pickle; nothing is unpickled", "hdf5": "no layout", "npy": "a single array"}[kind]
    with pytest.raises(ConfigError, match=message) as error:
        policies.load(path)
    assert "allow_pickle" not in str(error.value)


@pytest.mark.skipif(not AGENTS.is_dir(), reason="the published agents are not here")
@pytest.mark.parametrize(
    ("file", "task", "activation", "low", "high"),
    [
        ("ppo_Hopper-v3", "mujoco/hopper-v5", "relu", 2300, 2550),
        ("trpo_HalfCheetah-v3", "mujoco/halfcheetah-v5", "tanh", 1650, 1950),
        ("sac_HalfCheetah-v3", "mujoco/halfcheetah-v5", "", 8500, 9800),
        ("ars_Swimmer-v3", "mujoco/swimmer-v5", "", 250, 370),
    ],
)
def test_published_agents_earn_their_returns(file, task, activation, low, high):
    maker = functools.partial(policies.WeightsPolicy, AGENTS / f"{file}.npz", activation, task)
    player = Rollouts(task, [maker], 3, Options(), 0.0, 0)
    arrays = player.play(0, range(3))
    player.close()
    assert low < arrays["reward"].sum() / 3 < high
