"""Players: what they record is what was executed, whatever the policy sees the task through."""

import functools

import numpy as np
import pytest

import envs
from core import dataset
from core.config import ConfigError
from core.seeds import derive
from envs import collect, datasets
from envs.collect import Recipe
from envs.players import Expert, Random, Rollouts
from envs.registry import Options

HOPPER = "mujoco/hopper-v5"


class Waves:
    """Sines of the step; draws nothing."""

    def __init__(self, spec):
        self.spec = spec

    def reset(self, seeds):
        self.calls = []

    def act(self, obs):
        self.calls.append(obs)
        phase = np.arange(np.prod(self.spec.action_shape)).reshape(self.spec.action_shape)
        return 1.2 * np.sin(obs.step.reshape(-1, *[1] * phase.ndim) / 3 + phase)


def rollouts(task=HOPPER, policy=Waves, slots=3, options=None, noise=0.0, seed=7):
    return Rollouts(task, [policy], slots, options or Options(), noise, seed)


def replayed(task, arrays, number, first, length, seed=7):
    """The rewards and successors of stored actions, by a plain environment."""
    env = envs.make(task, 1)
    obs = env.reset([derive(seed, number)])
    np.testing.assert_array_equal(obs.state[0], arrays["state"][first])
    for row in range(first, first + length):
        ts = env.step(arrays["action"][row][None])
        np.testing.assert_array_equal(ts.final_obs.state[0], arrays["state"][row + 1])
        assert ts.reward[0] == arrays["reward"][row]
        assert ts.terminated[0] == arrays["terminated"][row]
    assert ts.terminated[0] or ts.truncated[0]
    env.close()


@pytest.mark.parametrize(
    "options", [Options(), Options(history=3), Options(chunk=4), Options(chunk=2, history=2, max_steps=9)]
)
def test_stored_actions_reproduce_what_is_stored(options):
    """Episodes of different lengths, more of them than slots; histories and chunks are the policy's business."""
    player = rollouts(options=options, noise=0.6)
    numbers = [4, 0, 9, 2]
    arrays = player.play(0, numbers)
    player.close()
    length = arrays["length"]
    assert len(set(length)) > 1 or options.max_steps
    first = np.cumsum(length + 1) - (length + 1)
    assert arrays["state"].shape == (sum(length + 1), 11)
    if not options.max_steps:
        for number, *where in zip(numbers, first, length, strict=True):
            replayed(HOPPER, arrays, number, *where)
    dataset.check(dataset.from_lengths(*(arrays[key] for key in datasets.ARRAYS[:5])), "played")


class Drawing(Waves):
    """Draws its actions, in each slot from the seed that it is given there."""

    def reset(self, seeds):
        self.draws = [np.random.default_rng(seed) for seed in seeds]

    def act(self, obs):
        return np.stack([rng.uniform(-1, 1, self.spec.action_shape) for rng in self.draws])


@pytest.mark.parametrize("policy", [Waves, Drawing])
def test_an_episode_depends_on_its_number_alone(policy):
    player, alone = (rollouts(policy=policy, noise=0.3, slots=slots) for slots in (3, 1))
    together = player.play(0, [0, 1, 2])
    single = alone.play(0, [1])
    begin = together["length"][0] + 1
    np.testing.assert_array_equal(together["state"][begin : begin + len(single["state"])], single["state"])
    player.close()
    alone.close()


def test_noise_is_added_to_clipped_actions():
    quiet, noisy = (rollouts(noise=noise).play(0, [0, 1]) for noise in (0.0, 0.3))
    assert np.abs(quiet["action"]).max() == np.abs(noisy["action"]).max() == 1
    difference = noisy["action"][0] - quiet["action"][0]
    drawn = np.random.default_rng(derive(7, 0, 1)).standard_normal(3)
    expected = np.clip(quiet["action"][0] + 0.3 * drawn, -1, 1) - quiet["action"][0]
    np.testing.assert_allclose(difference, expected, atol=1e-6)


def test_the_policy_sees_histories():
    player = rollouts(options=Options(history=3), slots=2)
    arrays = player.play(0, [0, 1])
    seen = player._policy.calls[2].state[0]
    np.testing.assert_array_equal(seen, arrays["state"][:3].ravel())
    player.close()


def test_success_by_the_tasks_rule():
    """Meta-World: at any step.  The scripted expert reaches and, later, may leave again."""
    _, source = collect.scripted(Recipe("metaworld/reach", 2, noise=0.3, seed=5, max_steps=60))
    player = source.build()
    arrays = player.play(0, [0, 1])
    player.close()
    assert arrays["success"].max() == 1.0
    state = arrays["state"][0].astype(np.float64)
    expert = source.build.args[1][0]
    intended = np.clip(expert(None)._make().get_action(state), -1, 1)
    drawn = np.random.default_rng(derive(5, 0, 1)).standard_normal(4)
    np.testing.assert_allclose(arrays["action"][0], np.clip(intended + 0.3 * drawn, -1, 1), atol=1e-6)
    assert isinstance(expert, functools.partial)
    assert expert.func is Expert


class Chooser:
    def __init__(self, spec):
        self.spec = spec

    def reset(self, seeds):
        self.draws = [np.random.default_rng(seed) for seed in seeds]

    def act(self, obs):
        return np.array([rng.integers(self.spec.num_actions) for rng in self.draws], np.int32)


def test_discrete_actions_are_kept_and_take_no_noise():
    player = rollouts("toy/frozenlake", Chooser)
    arrays = player.play(0, range(4))
    player.close()
    assert arrays["action"].dtype == np.int32
    assert arrays["terminated"].sum() == 4 - (arrays["length"] == player.spec.max_steps).sum()
    with pytest.raises(ConfigError, match="discrete actions"):
        rollouts("toy/frozenlake", Chooser, noise=0.1)


@pytest.mark.parametrize("task", [HOPPER, "toy/frozenlake"])
def test_random_actions_are_uniform_and_belong_to_their_episode(task):
    alone, both = (rollouts(task, Random, slots) for slots in (1, 2))
    arrays, again = alone.play(0, [5, 3]), both.play(0, [5, 3])
    for key, values in arrays.items():
        np.testing.assert_array_equal(values, again[key])
    data = dataset.from_lengths(*(arrays[key] for key in datasets.ARRAYS[:5]))
    action = arrays["action"][data.row]
    if alone.spec.num_actions:
        assert set(np.unique(action)) == set(range(alone.spec.num_actions))
    else:
        assert abs(action.mean()) < 0.25
        assert abs(action.var() - 1 / 3) < 0.15
        assert np.abs(action).max() <= 1
    for player in (alone, both):
        player.close()
