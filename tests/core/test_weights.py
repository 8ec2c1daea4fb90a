"""Trajectory weights against the equations written out, their invariants, and what the sampler then draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from core import batches, sampling, weights
from core import dataset as ds
from core.config import ConfigError
from core.weights import Scheme

SCHEMES = ["uniform", "rw:0.1", "aw:0.1", "top:0.2", "half:0.3"]


def problem(seed=0, episodes=40, state_dim=3):
    """Returns f64[E] that depend on the initial states f32[E, S], and lengths i64[E]."""
    rng = np.random.default_rng(seed)
    initial = rng.standard_normal((episodes, state_dim)).astype(np.float32)
    ret = 5 * initial[:, 0] + rng.normal(100, 1, episodes)
    return ret, rng.integers(1, 30, episodes), initial


def of(text, ret, count, initial, source=None):
    return weights.probabilities(weights.parse(text), ret, count, initial, source)


def per_transition(score, length, temperature):
    """The definition, one transition after the other."""
    low, high = min(score), max(score)
    weight = [
        np.exp((s - low) / (high - low) / temperature) for s, n in zip(score, length, strict=True) for _ in range(n)
    ]
    return np.array(weight) / sum(weight)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_return_and_advantage_weights_are_their_equations(temperature):
    ret, length, initial = problem()
    expected = per_transition(ret, length, temperature)
    np.testing.assert_allclose(np.repeat(of(f"rw:{temperature}", ret, length, initial), length), expected, rtol=1e-10)
    design = np.column_stack([np.ones(len(ret)), initial]).astype(np.float64)
    advantage = ret - design @ np.linalg.solve(design.T @ design, design.T @ ret)
    expected = per_transition(advantage, length, temperature)
    np.testing.assert_allclose(np.repeat(of(f"aw:{temperature}", ret, length, initial), length), expected, rtol=1e-8)


def test_long_episodes_are_drawn_in_proportion_to_their_length():
    """Returns 0, 1, 1 and lengths 1, 1, 100: the numbers of the equations by hand."""
    length = np.array([1, 1, 100])
    p = of("rw:0.1", [0, 1, 1], length, np.zeros((3, 2)))
    total = 1 + 101 * np.exp(10)
    np.testing.assert_allclose(length * p, np.array([1, np.exp(10), 100 * np.exp(10)]) / total, rtol=1e-12)


@pytest.mark.parametrize("text", SCHEMES)
def test_probabilities_sum_to_one_over_transitions(text):
    ret, length, initial = problem()
    for count in (length, np.where(np.arange(40) % 3, length, 0)):
        p = of(text, ret, count, initial)
        assert (p >= 0).all()
        assert (count * p).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("text", ["rw:0.1", "aw:0.1", "rw:0.05", "aw:3"])
def test_best_and_worst_differ_by_the_exponent_of_the_temperature(text):
    p = of(text, *problem())
    np.testing.assert_allclose(p.max() / p.min(), np.exp(1 / weights.parse(text).value), rtol=1e-10)


@pytest.mark.parametrize("text", SCHEMES)
def test_scaling_rewards_changes_nothing(text):
    ret, length, initial = problem()
    np.testing.assert_allclose(of(text, 7 * ret, length, initial), of(text, ret, length, initial), rtol=1e-8)


@pytest.mark.parametrize("text", ["rw:0.1", "aw:0.1", "top:0.2", "half:0.3"])
def test_shifting_rewards_matters_where_lengths_differ_only(text):
    ret, length, initial = problem()
    equal = np.full(40, 9)
    np.testing.assert_allclose(of(text, ret - equal, equal, initial), of(text, ret, equal, initial), rtol=1e-8)
    assert not np.allclose(of(text, ret - 5.0 * length, length, initial), of(text, ret, length, initial), rtol=0.1)


def test_a_high_temperature_is_uniform_and_a_low_one_finite():
    ret, length, initial = problem()
    for kind in ("rw", "aw"):
        np.testing.assert_allclose(of(f"{kind}:1e9", ret, length, initial), 1 / length.sum(), rtol=1e-8)
        sharp = of(f"{kind}:1e-6", ret, length, initial)
        np.testing.assert_allclose((length * sharp).max(), 1)
        assert (sharp > 0).sum() == 1


def test_advantages_know_no_linear_function_of_the_initial_state():
    ret, length, initial = problem()
    p = of("aw:0.1", ret, length, initial)
    moved = ret + initial.astype(np.float64) @ [3, -20, 0.5] + 7
    np.testing.assert_allclose(of("aw:0.1", moved, length, initial), p, rtol=1e-8)
    constant = np.full_like(initial, 0.3)
    np.testing.assert_allclose(of("aw:0.1", ret, length, constant), of("rw:0.1", ret, length, initial), rtol=1e-8)


def test_the_value_is_the_least_squares_fit():
    ret, _, initial = problem()
    slopes, intercept = weights.linear_value(ret, initial)
    error = ret - initial.astype(np.float64) @ slopes - intercept
    np.testing.assert_allclose(initial.astype(np.float64).T @ error, 0, atol=1e-9)
    assert error.sum() == pytest.approx(0, abs=1e-9)
    twice = np.repeat(initial, 2, axis=1)  # the shortest of many
    np.testing.assert_allclose(weights.linear_value(ret, twice)[0], np.repeat(slopes / 2, 2), rtol=1e-8)
    with pytest.raises(ConfigError, match="take rw instead"):
        weights.linear_value(ret, np.zeros((40, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("text", SCHEMES)
def test_the_order_of_the_episodes_does_not_matter(text):
    ret, length, initial = problem()
    order = np.random.default_rng(1).permutation(40)
    shuffled = of(text, ret[order], length[order], initial[order])
    np.testing.assert_allclose(shuffled, of(text, ret, length, initial)[order], rtol=1e-8)


@pytest.mark.parametrize("text", ["rw:0.1", "aw:0.1"])
def test_equal_returns_are_drawn_alike(text):
    _, length, initial = problem()
    np.testing.assert_array_equal(of(text, np.full(40, 3.7), length, initial), 1 / length.sum())
    summed = [
        np.sum(np.random.default_rng(i).permutation(np.r_[np.full(50, 0.1), np.full(50, 0.3)])) for i in range(40)
    ]
    assert np.ptp(summed) > 0  # by rounding
    np.testing.assert_array_equal(of(text, summed, length, initial), 1 / length.sum())


def test_advantages_that_the_fit_leaves_none_of_are_alike():
    """Two episodes: V meets both returns, and what is left is rounding."""
    p = of("aw:0.1", [0.1, 0.7], np.array([2, 3]), np.array([[0.2, 1.0], [0.7, 3.0]], np.float32))
    np.testing.assert_array_equal(p, 0.2)


@pytest.mark.parametrize(("share", "kept"), [(0.1, 4), (0.29, 11), (0.025, 1), (1.0, 40)])
def test_top_keeps_the_floor_of_its_share(share, kept):
    ret, length, initial = problem()
    p = of(f"top:{share}", ret, length, initial)
    best = ret >= np.sort(ret)[-kept]
    np.testing.assert_array_equal(p > 0, best)
    np.testing.assert_allclose(p[best], 1 / length[best].sum())


def test_shares_are_decimal_numbers():
    assert len(weights.best(np.zeros(100), 0.29)) == 29  # 0.29 * 100 is 28.99...
    assert weights.best(np.array([1, 3, 3, 2]), 0.5).tolist() == [2, 1]
    with pytest.raises(ConfigError, match=r"a share of 0\.1 of 9 episodes is none"):
        weights.best(np.zeros(9), 0.1)


def test_half_is_half_of_the_draws():
    ret, length, initial = problem()
    best = np.isin(np.arange(40), weights.best(ret, 0.3))
    source = np.arange(40) % 5 == 0
    for p, one in ((of("half:0.3", ret, length, initial), best), (of("half", ret, length, initial, source), source)):
        for part in (one, ~one):
            np.testing.assert_allclose(p[part], 0.5 / length[part].sum())
    for unknown in (None, np.zeros(40, int), np.arange(40) % 3):
        with pytest.raises(ConfigError, match="both datasets of a mixture of two"):
            of("half", ret, length, initial, unknown)
    with pytest.raises(ConfigError, match="no transitions to learn from"):
        of("half:0.3", ret, np.where(best, 0, length), initial)


def test_weights_are_of_what_may_be_drawn():
    """Where some transitions may not be drawn, the others keep their ratios, and half stays half."""
    ret, length, initial = problem()
    fewer = length // 2
    for text in ("rw:0.1", "aw:0.1", "top:0.2"):
        all_of_them, some = of(text, ret, length, initial), of(text, ret, fewer, initial)
        np.testing.assert_allclose(some, all_of_them / (fewer * all_of_them).sum(), rtol=1e-10)
    p, best = of("half:0.3", ret, fewer, initial), weights.best(ret, 0.3)
    assert (fewer * p)[best].sum() == pytest.approx(0.5)


def test_effective_numbers():
    length = np.array([2, 3, 5])
    assert weights.effective(np.full(3, 0.1), length) == pytest.approx((10, 1 / (0.04 + 0.09 + 0.25)))
    assert weights.effective([0, 1 / 3, 0], length) == pytest.approx((3, 1))


@pytest.mark.parametrize(
    ("text", "scheme", "canonical"),
    [
        ("uniform", Scheme("uniform"), "uniform"),
        ("aw", Scheme("aw", 0.1), "aw:0.1"),
        ("rw:0.20", Scheme("rw", 0.2), "rw:0.2"),
        ("top", Scheme("top", 0.1), "top:0.1"),
        ("top:1", Scheme("top", 1.0), "top:1.0"),
        ("half", Scheme("half"), "half"),
        ("half:5e-1", Scheme("half", 0.5), "half:0.5"),
    ],
)
def test_schemes_are_read_and_written(text, scheme, canonical):
    assert weights.parse(text) == scheme
    assert str(scheme) == canonical
    assert weights.parse(canonical) == scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("awr:0.1", "they are uniform, rw:T, aw:T, top:x, half or half:x; nearest: aw:T"),
        ("Uniform", "nearest: uniform"),
        ("", "unknown weights ''"),
        ("aw:", "aw takes a temperature above 0"),
        ("rw:0", "rw takes a temperature above 0"),
        ("rw:nan", "rw takes a temperature"),
        ("aw:inf", "aw takes a temperature"),
        ("top:1.1", "top takes a share above 0, at most 1"),
        ("half:1", "half takes a share above 0, below 1"),
        ("uniform:1", "uniform takes no number"),
    ],
)
def test_what_is_no_scheme(text, message):
    with pytest.raises(ConfigError, match=message):
        weights.parse(text)


@pytest.mark.parametrize("text", ["rw:0.2", "top:0.2", "half:0.3"])
def test_a_jitted_program_draws_what_the_equations_say(text):
    """Batches of whole chunks of three, in one program: chi-square over all transitions, none where p is 0."""
    ret, length, initial = problem(episodes=12)
    rows = int((length + 1).sum())
    data = ds.from_lengths(
        np.zeros((rows, 3), np.float32), np.zeros((rows, 1), np.float32), np.zeros(rows, np.float32),
        np.zeros(rows, bool), length,
    )  # fmt: skip
    usable = ds.whole(data, 3)
    count = np.add.reduceat(usable, np.cumsum(length) - length, dtype=np.int64)
    p = np.repeat(of(text, ret, count, initial), length) * usable
    sampler = sampling.alias_table(p)
    np.testing.assert_allclose(sampling.probabilities(sampler), p, rtol=1e-6, atol=1e-12)
    on_device = batches.data(data, ds.identity_norm(3, 1), sampler)

    @jax.jit
    def drawn(key):
        keys = jax.random.split(key, 200)
        sample = batches.sampled(1000, chunk=3)
        return jax.lax.scan(lambda _, key: (None, sample(on_device, key).extras["row"]), None, keys)[1]

    seen = np.bincount(np.asarray(drawn(jax.random.key(0))).ravel(), minlength=rows)[data.row]
    assert seen.sum() == 200_000
    assert not seen[p == 0].any()
    assert chisquare(seen[p > 0], 200_000 * p[p > 0]).pvalue > 1e-4


def test_a_wrong_distribution_is_seen_by_chi_square():
    """The test above sees weights that forget the length."""
    ret, length, initial = problem(episodes=12)
    p = np.repeat(of("rw:0.2", ret, length, initial), length)
    wrong = np.repeat(of("rw:0.2", ret, length, initial) / length, length)
    table = jax.tree.map(jnp.asarray, sampling.alias_table(wrong))
    seen = np.bincount(np.asarray(sampling.draw(table, jax.random.key(0), (200_000,))), minlength=len(p))
    assert chisquare(seen, 200_000 * p).pvalue < 1e-12


def test_episodes_of_any_end_count_whole():
    """Ended by the task, by the clock, and cut short at the end of the data: returns and lengths are of transitions."""
    length = np.array([3, 2, 1])
    rows = int((length + 1).sum())
    reward = np.arange(1.0, rows + 1, dtype=np.float32)  # the last row of each episode has one too, as flat files do
    terminated = np.zeros(rows, bool)
    terminated[2] = True
    data = ds.from_lengths(np.zeros((rows, 1), np.float32), np.zeros((rows, 1), np.float32), reward, terminated, length)
    found = ds.episodes(data)
    np.testing.assert_array_equal(found.length, length)
    np.testing.assert_array_equal(found.ret, [1 + 2 + 3, 5 + 6, 8])
    np.testing.assert_array_equal(found.first, [0, 4, 7])
