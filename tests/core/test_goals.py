"""Goals in hindsight: where they may lie, how often, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import batches, dataset, goals
from core.config import ConfigError
from core.goals import Mixture

LENGTHS = np.array([8, 60, 30, 1])


def episodes():
    """States are their own row numbers."""
    rows = int((LENGTHS + 1).sum())
    nothing = np.zeros(rows, np.float32)
    state = np.arange(rows, dtype=np.float32)[:, None]
    return dataset.from_lengths(state, nothing[:, None], nothing, np.zeros(rows, bool), LENGTHS)


DATA = jax.tree.map(jnp.asarray, episodes())
ROW = jnp.tile(DATA.row, 200)
FINAL = np.asarray(goals.final(DATA, ROW))


def test_no_goal_is_an_episodes_last_state():
    assert set(FINAL.tolist()) == {7, 68, 99, 101}
    drawn = goals.random(DATA, jax.random.key(0), (100_000,))
    assert set(np.unique(drawn).tolist()) == set(np.asarray(DATA.row).tolist())


@pytest.mark.parametrize("discount", [None, 0.9])
def test_later_goals_lie_ahead_in_their_episode(discount):
    later = np.asarray(goals.future(DATA, ROW, jax.random.key(1), discount))
    row = np.asarray(ROW)
    assert ((later > row) | (row == FINAL)).all()
    assert (later <= FINAL).all()
    assert (later[row == FINAL] == FINAL[row == FINAL]).all()
    assert (later == FINAL)[row < FINAL].any()
    assert (later < FINAL).any()


def test_how_far_ahead():
    """Geometric: P(k = n) = (1 - gamma) gamma^(n - 1); uniform: the ends half as often as what lies between."""
    row, draws = jnp.full(400_000, 9, jnp.int32), 400_000
    steps = np.asarray(goals.future(DATA, row, jax.random.key(2), 0.8)) - 9
    counts = np.bincount(steps, minlength=60)[1:20] / draws
    np.testing.assert_allclose(counts, 0.2 * 0.8 ** np.arange(19), atol=5 * np.sqrt(0.2 * 0.8 / draws))
    steps = np.asarray(goals.future(DATA, row, jax.random.key(3), None)) - 9
    counts = np.bincount(steps, minlength=60) * 58 / draws
    np.testing.assert_allclose(counts, [0, 0.5, *np.ones(57), 0.5], atol=0.07)


def test_a_mixture_draws_each_kind_with_its_probability():
    row = jnp.full(400_000, 20, jnp.int32)
    goal = np.asarray(goals.draw(DATA, row, jax.random.key(4), Mixture(0.2, 0.5, 0.3, True), 0.9))
    n = len(DATA.row)
    elsewhere = np.setdiff1d(np.asarray(DATA.row), np.arange(20, 69)).size / n
    assert (goal == 20).mean() == pytest.approx(0.2 + 0.3 / n, abs=4e-3)
    assert ((goal < 20) | (goal > 68)).mean() == pytest.approx(0.3 * elsewhere, abs=4e-3)
    assert (goals.draw(DATA, row, jax.random.key(5), Mixture(1.0, 0.0, 0.0), 0.9) == 20).all()
    assert (goals.draw(DATA, row, jax.random.key(5), Mixture(), 0.9) > 20).all()


def test_subgoals_lie_on_the_way():
    """Lower: k steps on; upper: k steps on or at its goal, and k steps on whatever the goal where that is random."""
    row = np.asarray(ROW)
    ahead = np.minimum(row + 5, FINAL)
    sub = jax.tree.map(np.asarray, goals.subgoals(DATA, ROW, jax.random.key(6), 5, 0.0, None))
    assert (sub.low == ahead).all()
    assert (sub.target == np.minimum(row + 5, sub.goal)).all()
    assert (sub.target < ahead).any()
    anywhere = jax.tree.map(np.asarray, goals.subgoals(DATA, ROW, jax.random.key(6), 5, 1.0, None))
    assert (anywhere.target == ahead).all()
    assert (anywhere.goal < row).any()


def test_options_end_at_the_goal_or_after_n_steps_or_with_the_episode():
    row = np.asarray(ROW)
    later = jax.tree.map(np.asarray, goals.option(DATA, ROW, jax.random.key(7), Mixture(), 4, 0.9))
    assert (later.end == np.minimum(row + 4, later.goal)).all()
    mixed = jax.tree.map(np.asarray, goals.option(DATA, ROW, jax.random.key(8), Mixture(0.2, 0.5, 0.3, True), 4, 0.9))
    assert (mixed.end <= np.minimum(row + 4, FINAL)).all()
    assert (mixed.end[row < FINAL] > row[row < FINAL]).all()
    now = jax.tree.map(np.asarray, goals.option(DATA, ROW, jax.random.key(9), Mixture(1.0, 0.0, 0.0), 4, 0.9))
    assert (now.end == now.goal).all()


def test_relabelled_transitions():
    """success <=> the same row; r = success - 1; a reached goal ends the task; successors as ever."""
    data = batches.data(episodes(), dataset.identity_norm(1, 1))
    sample = goals.sampled(
        4096,
        lambda d, row, key: (goals.draw(d, row, key, Mixture(0.3, 0.4, 0.3), 0.9), {"same": row}, {"one": row * 0 + 1}),
    )
    t = jax.tree.map(np.asarray, jax.jit(sample)(data, jax.random.key(10)))
    reached = t.obs.state == t.obs.goal
    assert 0.2 < reached.mean() < 0.5
    assert (t.terminated == reached[:, 0]).all()
    assert (t.reward == t.terminated - 1.0).all()
    assert (t.next_obs.state == t.obs.state + 1).all()
    assert not (t.terminated & t.truncated).any()
    assert t.truncated.any()
    assert (t.extras["states"]["same"] == t.obs.state).all()
    assert (t.extras["given"]["one"] == 1).all()


def test_histories_of_goals_and_the_odd_one_of_last_states():
    row = jnp.array([0, 6, 7])
    whole, odd = (goals.relabelled(DATA, row, row, 3, alone) for alone in (False, True))
    np.testing.assert_array_equal(whole.obs.goal, [[0, 0, 0], [4, 5, 6], [5, 6, 7]])
    np.testing.assert_array_equal(whole.next_obs.state, [[0, 0, 1], [5, 6, 7], [6, 7, 8]])
    np.testing.assert_array_equal(odd.next_obs.state, [[0, 0, 1], [5, 6, 7], [8, 8, 8]])


@pytest.mark.parametrize(
    ("mixture", "discount", "message"),
    [
        (Mixture(0.5, 0.6, 0.0), 0.9, "sum to 1"),
        (Mixture(-0.5, 1.5, 0.0), 0.9, "at least 0"),
        (Mixture(geometric=True), 1.0, "discount in \\[0, 1\\)"),
    ],
)
def test_refused(mixture, discount, message):
    with pytest.raises(ConfigError, match=message):
        goals.check(mixture, discount)
