"""Nearest rows are exact: against float64 brute force, on random and on adversarial data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import neighbors

QUERIES = 64
nearest = jax.jit(neighbors.nearest)


def normal(rng, rows, states, actions):
    return rng.normal(size=(rows, states)), rng.uniform(-1, 1, (rows, actions))


def duplicates(rng, rows, states, actions):
    state, action = normal(rng, rows, states, actions)
    again = rng.integers(0, rows // 8, rows)
    return state[again], action[again]


def same_states(rng, rows, states, actions):
    return np.repeat(normal(rng, 1, states, actions)[0], rows, axis=0), normal(rng, rows, states, actions)[1]


def constant_columns(rng, rows, states, actions):
    state, action = normal(rng, rows, states, actions)
    state[:, ::2], action[:, 0] = 3.0, -1.0
    return state, action


def resets(rng, rows, states, actions):
    """A third of the states lie within a hundredth of one point."""
    state, action = normal(rng, rows, states, actions)
    state[: rows // 3] = 0.01 * state[: rows // 3] + 1
    return state, action


def grid(rng, rows, states, actions):
    """Many rows equally near."""
    return rng.integers(-1, 2, (rows, states)), rng.integers(-1, 2, (rows, actions))


def far_from_zero(rng, rows, states, actions):
    """Where |x|^2 - 2xy + |y|^2 would lose all digits."""
    state, action = normal(rng, rows, states, actions)
    return 0.1 * state + 300, action


MAKERS = (normal, duplicates, same_states, constant_columns, resets, grid, far_from_zero)


def truth(state, action, row, wanted, beta):
    """Distance to the nearest row, f64[B]."""
    apart = beta**2 * np.square(state[row][:, None] - state).sum(-1)
    return np.sqrt((apart + np.square(wanted[:, None] - action).sum(-1)).min(1))


def measured(state, action, row, wanted, beta, found):
    apart = beta**2 * np.square(state[row] - state[found]).sum(-1)
    return np.sqrt(apart + np.square(wanted - action[found]).sum(-1))


def rows_of(maker, rows, states=5, actions=3, seed=0):
    return tuple(x.astype(np.float32) for x in maker(np.random.default_rng(seed), rows, states, actions))


def queries(action, far, seed=1):
    rng = np.random.default_rng(seed)
    row = rng.integers(len(action), size=QUERIES)
    noise = rng.normal(size=(QUERIES, action.shape[1]))
    wanted = np.tanh(noise) if far else np.clip(action[row] + 0.1 * noise, -1, 1)
    return row.astype(np.int32), wanted.astype(np.float32)


def check(state, action, index, beta, far=True):
    """Against all rows of the index; that those are the dataset's but for rounding is a test of its own."""
    row, wanted = queries(action, far)
    found = nearest(index, row, wanted, beta)
    wide = [np.asarray(x, np.float64) for x in (index.state, index.action)]
    expected = truth(*wide, row, wanted.astype(np.float64), beta)
    np.testing.assert_allclose(found.distance, expected, rtol=1e-5, atol=1e-7)
    ours = measured(*wide, row, wanted.astype(np.float64), beta, found.row)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0, 1e3])
@pytest.mark.parametrize("maker", MAKERS)
def test_equal_to_brute_force(maker, beta, far):
    state, action = rows_of(maker, 2000)
    check(state, action, neighbors.build(state, action, listed=16, leaf=8), beta, far)


@pytest.mark.parametrize(("rows", "listed"), [(1, 1), (2, 8), (3, 1), (8, 50), (33, 8), (100, 1), (100, 50)])
def test_any_number_of_rows_and_of_listed_ones(rows, listed):
    state, action = rows_of(normal, rows)
    index = neighbors.build(state, action, listed=listed, leaf=4)
    assert index.listed.shape[1] == min(rows, listed)
    check(state, action, index, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_random_shapes(seed):
    rng = np.random.default_rng(seed)
    states, actions, rows = rng.integers(1, 20), rng.integers(1, 8), rng.integers(1, 3000)
    state, action = rows_of(MAKERS[seed % len(MAKERS)], max(rows, 8), states, actions, seed)
    check(state, action, neighbors.build(state, action), float(rng.uniform(0, 8)))


@pytest.mark.parametrize("maker", MAKERS)
def test_rotated_states_keep_their_distances(maker):
    state, action = rows_of(maker, 200)
    index = neighbors.build(state, action)
    there, ours = (np.linalg.norm(x[:, None].astype(np.float64) - x, axis=-1) for x in (state, index.state))
    np.testing.assert_allclose(ours, there, rtol=1e-5, atol=1e-6 * (1 + np.ptp(state)))
    np.testing.assert_array_equal(index.action, action)


@pytest.mark.parametrize("states", [5, 40])  # by a KD-tree, by products
@pytest.mark.parametrize("maker", MAKERS)
def test_a_certificate_never_lies(maker, states):
    """Whatever lies outside a list is at least as far by state as `reach` says."""
    state, action = rows_of(maker, 500, states)
    index = neighbors.build(state, action, listed=8)
    np.testing.assert_array_equal((index.listed == np.arange(500)[:, None]).any(axis=1), True)
    for row in range(0, 500, 7):
        outside = np.setdiff1d(np.arange(500), index.listed[row])
        apart = np.square(index.state[row].astype(np.float64) - index.state[outside]).sum(-1)
        assert apart.min() >= index.reach[row]
        kept = np.square(index.state[row].astype(np.float64) - index.state[index.listed[row]]).sum(-1)
        np.testing.assert_allclose(index.apart[row], kept, rtol=1e-5, atol=1e-9)
    if maker is normal:
        assert (index.reach > 0).all()
    whole = neighbors.build(state, action, listed=500)
    assert np.isinf(whole.reach).all()


def test_own_rows_come_first_where_more_have_nearly_their_state():
    rng = np.random.default_rng(0)
    state = 3 + rng.normal(size=(200, 40)).astype(np.float32)
    state[:150] = state[0] + rng.normal(0, 1e-6, (150, 40)).astype(np.float32)
    listed, apart, _ = neighbors.lists(state, np.arange(200), 32)
    assert (listed == np.arange(200)[:, None]).any(axis=1).all()
    assert (np.diff(apart) >= 0).all()
    own = apart[listed == np.arange(200)[:, None]]
    np.testing.assert_array_equal(own, 0)


def test_every_row_is_in_its_leaf_and_box():
    state, action = rows_of(duplicates, 777)
    index = neighbors.build(state, action)
    assert set(index.leaf.ravel()) == set(range(777))
    inside = index.boxes[:, 0][..., None], index.boxes[:, 1][..., None]
    key = index.key.reshape(len(index.boxes), -1, *index.key.shape[1:]).swapaxes(1, 2)
    assert (inside[0] <= key).all()
    assert (key <= inside[1]).all()


def test_states_of_many_numbers():
    state, action = rows_of(resets, 700, states=60)
    check(state, action, neighbors.build(state, action, listed=16), 0.3)


def test_ones_own_row_is_at_distance_zero():
    state, action = rows_of(normal, 300)
    index, row = neighbors.build(state, action), np.arange(300, dtype=np.int32)
    for beta in (0.0, 2.0, 7.5):
        found = nearest(index, row, action, beta)
        np.testing.assert_array_equal(found.row, row)
        np.testing.assert_array_equal(found.distance, 0)


def test_no_farther_than_ones_own_action_and_the_order_of_rows_is_nothing():
    state, action = rows_of(resets, 600)
    row, wanted = queries(action, far=True)
    found = nearest(neighbors.build(state, action), row, wanted, 2.0)
    assert (found.distance <= np.linalg.norm(wanted - action[row], axis=1) + 1e-6).all()
    order = np.random.default_rng(3).permutation(600)
    place = np.argsort(order).astype(np.int32)
    again = nearest(neighbors.build(state[order], action[order]), place[row], wanted, 2.0)
    np.testing.assert_allclose(again.distance, found.distance, rtol=1e-5, atol=1e-6)


def test_beta_decides_between_state_and_action():
    state, action = rows_of(normal, 500)
    index = neighbors.build(state, action)
    row, wanted = queries(action, far=True)
    np.testing.assert_array_equal(nearest(index, row, wanted, 1e3).row, row)
    elsewhere = nearest(index, (row + 250) % 500, wanted, 0.0)
    np.testing.assert_allclose(nearest(index, row, wanted, 0.0).distance, elsewhere.distance, rtol=1e-5)


def test_mapped_queries_are_asked_together_and_answered_alike():
    state, action = rows_of(resets, 400)
    index = neighbors.build(state, action, listed=8)
    asked = [queries(action, True, seed) for seed in range(3)]
    row, wanted = (np.stack(x) for x in zip(*asked, strict=True))
    mapped = jax.jit(jax.vmap(neighbors.nearest, in_axes=(None, 0, 0, None)))(index, row, wanted, 2.0)
    shared = jax.jit(jax.vmap(neighbors.nearest, in_axes=(None, None, 0, None)))(index, row[0], wanted, 2.0)
    betas = jax.jit(jax.vmap(neighbors.nearest, in_axes=(None, 0, 0, 0)))(
        index, row, wanted, jnp.array([0.0, 2.0, 9.0])
    )
    for i in range(3):
        for mine, at, beta in ((mapped, i, 2.0), (shared, 0, 2.0), (betas, i, (0.0, 2.0, 9.0)[i])):
            alone = nearest(index, row[at], wanted[i], beta)
            np.testing.assert_allclose(mine.distance[i], alone.distance, rtol=1e-6, atol=1e-6)


def test_no_gradient_flows():
    state, action = rows_of(normal, 50)
    index = neighbors.build(state, action)
    row, wanted = queries(action, True)
    gradient = jax.grad(lambda wanted: neighbors.nearest(index, row, wanted, 2.0).distance.sum())(wanted)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("k", [1, 3])
def test_brute_force(k):
    rng = np.random.default_rng(0)
    rows, query = (rng.normal(size=(n, 4)).astype(np.float32) for n in (2500, 9))
    found = jax.jit(neighbors.brute_force, static_argnums=2)(rows, query, k)
    apart = np.sort(np.linalg.norm(query[:, None].astype(np.float64) - rows, axis=-1), axis=1)
    np.testing.assert_allclose(found.distance, apart[:, :k], rtol=1e-5)
    ours = np.linalg.norm(query[:, None].astype(np.float64) - rows[np.asarray(found.row)], axis=-1)
    np.testing.assert_allclose(ours, apart[:, :k], rtol=1e-5)
    with pytest.raises(ValueError, match="k 10 must"):
        neighbors.brute_force(rows[:9], query, 10)


def test_an_index_is_made_once(tmp_path, monkeypatch):
    state, action = rows_of(resets, 300)
    made = neighbors.cached(state, action, tmp_path / "new")
    (file,) = (tmp_path / "new").glob("*.npz")
    with monkeypatch.context() as patched:
        patched.setattr(neighbors, "build", None)
        again = neighbors.cached(state, action, tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, made, again)
    file.write_bytes(file.read_bytes()[:1000])  # damaged: made anew
    jax.tree.map(np.testing.assert_array_equal, made, neighbors.cached(state, action, tmp_path / "new"))
    assert file.stat().st_size > 1000
    neighbors.cached(state + 1, action, tmp_path / "new")
    assert sorted(x.suffix for x in (tmp_path / "new").iterdir()) == ["", ".npz", ".npz"]
    with pytest.raises(ValueError, match="leaf of 1"):
        neighbors.build(state, action, leaf=1)
    blocked = tmp_path / "file"
    blocked.write_text("")
    jax.tree.map(np.testing.assert_array_equal, made, neighbors.cached(state, action, blocked))


def test_lists_grow_with_memory_in_mind():
    assert neighbors.list_size(100_000) == 128
    assert neighbors.list_size(1_000_000) == 67
    assert neighbors.list_size(100_000_000) == 8
    assert neighbors.list_size(5) == 5
