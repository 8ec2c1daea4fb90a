"""Exact nearest rows of a dataset under the key [beta * state, action], where the query's state is a row's own.

Row i is at distance |p - a_i| of the query (s_i, p), so only rows whose states are within that over beta can be nearer.
Two structures serve this; both are made once per dataset, whatever beta and the policy are:

- lists: the K nearest rows of every row by state alone.  The nearest among them is the answer where its distance is at
  most beta times that of the list's last state: a certificate, because every row outside is farther.
- leaves: a partition of the rows into boxes of states and actions, in two levels.  A box is opened for those queries
  that are left and whose best is above its least possible distance.  This is what finds neighbours where thousands of
  rows have almost the same state, as after resets.

The answer is exact whatever the data are: where bounds prune nothing, every box is opened.  Distances are sums of
squared float32 differences, never |x|^2 - 2xy + |y|^2.  States are rotated to their principal axes, which makes boxes
tighter and changes no distance but by float32's rounding.  Reference: PRDC, arXiv:2306.06569, whose authors ask a
KD-tree on the CPU.
Axes: N rows, S state, A action, D = S + A, B queries, K listed rows, L leaves, m rows of a leaf, C boxes of leaves.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from scipy.spatial import cKDTree

from core import locks
from core.losses import check_shapes
from core.types import Array, PyTree

LISTED = 128  # K, at most
ENTRIES = 2**26  # of all lists together, half a gigabyte; K is smaller where there are more rows
FIRST = 8  # K, at least; and what of a list is looked at first, which is all that most queries need
LEAF = 32  # m, at most
TREE = 32  # numbers in a state up to which a KD-tree makes the lists; beyond, it looks at most rows anyway
TREE_LEAF = 64  # rows
PRODUCTS = 2**26  # of states that are held at once without it
SAMPLE = 32  # times K columns give each row's products their bound
GROUP, BOXES, LEAVES = 16, 64, 128  # queries, boxes and leaves that are looked into at once
SLACK = 1 - 1e-5  # bounds are rounded down by more than float32 errs
BLOCK = 1024  # rows of brute force
VERSION = 2  # of what `cached` keeps:
KEPT = ("state", "listed", "apart", "reach", "leaf")


class Index(NamedTuple):
    state: Array  # f32[N, S] in principal axes
    action: Array  # f32[N, A]
    listed: Array  # i32[N, K] nearest rows by state, the row itself among them
    apart: Array  # f32[N, K] squared distances of their states
    reach: Array  # f32[N] squared distance of states within which the list misses no row; inf: it misses none
    leaf: Array  # i32[L, m] rows; a shorter leaf repeats its first
    key: Array  # f32[L, D, m] their states and actions
    boxes: Array  # f32[C, 2, D, L / C] lowest and highest corners of the leaves
    uppers: Array  # f32[2, D, C] and of C boxes that hold L / C leaves each


class Nearest(NamedTuple):
    row: Array  # i32[B]
    distance: Array  # f32[B] sqrt(beta^2 |s - s_row|^2 + |p - a_row|^2)


# --- building, on the host ---


def build(state: Array, action: Array, listed: int | None = None, leaf: int = LEAF) -> Index:
    """Index of rows f32[N, S], f32[N, A].

    For 100k rows seconds to minutes, by the numbers in a state; for 1M minutes to hours.
    Args: state: scaled as the keys are to have it, but for beta; listed: K, by default `list_size(N)`; leaf: m, at
        least 2.
    """
    if leaf < 2:
        raise ValueError(f"a leaf of {leaf} rows: it needs at least 2")
    state, action = _rotated(state), np.asarray(action, np.float32)
    size = list_size(len(state)) if listed is None else listed
    return _index(state, action, *lists(state, np.arange(len(state)), size), _partition(state, action, leaf))


def cached(state: Array, action: Array, folder: Path) -> Index:
    """`build`, kept in `folder` under a hash of the rows: runs of any beta, policy and seed share it.

    Of processes that make some at once one does and the others wait.  What cannot be read is made anew, and where
    nothing can be written, nothing is kept.
    """
    state, action = np.ascontiguousarray(state, np.float32), np.ascontiguousarray(action, np.float32)
    settings = VERSION, list_size(len(state)), LEAF, state.shape, action.shape
    name = hashlib.sha256(repr(settings).encode() + state.tobytes() + action.tobytes()).hexdigest()[:32]
    path = folder / f"{name}.npz"
    if index := _read(action, path):
        return index
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locks.in_turn(folder):
            return _read(action, path) or _made(state, action, path)
    except OSError:
        return build(state, action)


def _read(action: np.ndarray, path: Path) -> Index | None:
    damaged = OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile
    with contextlib.suppress(*damaged), np.load(path) as file:
        return _index(file["state"], action, *(file[key] for key in KEPT[1:]))
    return None


def _made(state: np.ndarray, action: np.ndarray, path: Path) -> Index:
    print(f"indexing {len(state):,} rows for nearest neighbours, once for this dataset: {path}", flush=True)
    index, part = build(state, action), path.with_suffix(".part")
    with contextlib.suppress(OSError):
        try:
            with part.open("wb") as file:
                np.savez(file, **{key: getattr(index, key) for key in KEPT})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return index


def list_size(rows: int) -> int:
    """K for so many rows."""
    return min(LISTED, max(FIRST, ENTRIES // rows), rows)


def lists(state: np.ndarray, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(listed i32[R, K], apart f32[R, K], reach f32[R]) of the given rows."""
    size = min(size, len(state))
    if state.shape[1] <= TREE:
        distance, found = cKDTree(state, TREE_LEAF).query(state[rows], k=size, workers=-1)
        apart, found = np.square(distance.reshape(len(rows), size)), found.reshape(len(rows), size)
        reach = apart[:, -1]
    else:
        found, apart, reach = _lists_by_products(state, rows, size)
    # where more than K rows have its state, or seem to by their products; it reaches 0 there
    left_out = ~(found == rows[:, None]).any(axis=1)
    found[left_out, 0], apart[left_out, 0] = rows[left_out], 0
    reach = np.full(len(rows), np.inf) if size == len(state) else SLACK * reach
    return found.astype(np.int32), apart.astype(np.float32), reach.astype(np.float32)


def _lists_by_products(state: np.ndarray, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists by |x|^2 - 2xy + |y|^2, whose error is taken off how far they reach; what they hold is measured exactly."""
    wide, norm = state.astype(np.float64), np.square(state, dtype=np.float64).sum(axis=1)
    half, last, stride = norm.astype(np.float32) / 2, min(size, len(state) - 1), max(1, len(state) // (SAMPLE * size))
    parts, at_once = [], max(1, PRODUCTS // len(state))
    for first in range(0, len(rows), at_once):
        row = rows[first : first + at_once]
        product = half - state[row] @ state.T  # half of the squared distances, but for the row's own norm
        error = (state.shape[1] + 4) * 2**-23 * np.square(np.sqrt(norm[row]) + np.sqrt(norm.max()))
        bound = np.partition(product[:, ::stride], last, axis=1)[:, last]
        found, outside = np.empty((len(row), size), np.int64), np.empty(len(row))
        for i, own in enumerate(product):  # few are below the bound, which more than K are
            below = np.flatnonzero(own <= bound[i])
            below = below[np.argpartition(own[below], last)]
            found[i], outside[i] = below[:size], 2 * (own[below[last]] + half[row[i]])
        exact = np.square(wide[row, None] - wide[found]).sum(axis=2)
        nearer = np.argsort(exact, axis=1)
        found, exact = (np.take_along_axis(x, nearer, 1) for x in (found, exact))
        parts.append((found, exact, np.maximum(outside - error, 0)))
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


def _rotated(state: Array) -> np.ndarray:
    state = np.asarray(state, np.float64)
    centred = state - state.mean(axis=0)
    return (centred @ np.linalg.eigh(centred.T @ centred)[1]).astype(np.float32)


def _partition(state: np.ndarray, action: np.ndarray, size: int) -> np.ndarray:
    """i32[L, m] rows: halves, along the coordinate of greatest variance, of halves, until each has at most `size`."""
    key = np.concatenate([state, action], axis=1)
    parts = [np.arange(len(key))]
    while max(map(len, parts)) > size:
        halves = []
        for part in parts:
            values = key[part]
            values, middle = values[:, np.argmax(values.var(axis=0))], len(part) // 2
            order = part[np.argpartition(values, middle)]
            halves += [order[:middle], order[middle:]]
        parts = halves
    width = max(map(len, parts))
    return np.stack([np.concatenate([part, np.full(width - len(part), part[0])]) for part in parts]).astype(np.int32)


def _index(state, action, listed, apart, reach, leaf) -> Index:
    count = 1 << (len(leaf).bit_length() // 2)
    # rows are the last axis: sums over coordinates then run along cache lines
    key = np.concatenate([state, action], axis=1)[leaf].swapaxes(1, 2)
    low, high = (x.reshape(count, -1, key.shape[1]) for x in (key.min(axis=2), key.max(axis=2)))
    boxes = np.stack([low, high], axis=1).swapaxes(2, 3)
    uppers = np.stack([low.min(axis=1).T, high.max(axis=1).T])
    return Index(state, action, listed, apart, reach, leaf, key, boxes, uppers)


# --- asking, jitted ---


def nearest(index: Index, row: Array, action: Array, beta: float | Array) -> Nearest:
    """The row nearest to (state of `row`, `action`); of equally near ones any.

    Args: row i32[B]; action f32[B, A]; beta >= 0.  No gradient flows through it; under vmap all queries are asked at
        once.
    """
    check_shapes(queries=row, actions=action[:, 0])
    row, action, beta = jax.lax.stop_gradient((row, action, jnp.asarray(beta, index.state.dtype)))
    return _nearest(index, row, action.astype(index.state.dtype), beta)


@custom_vmap
def _nearest(index: Index, row: Array, action: Array, beta: Array) -> Nearest:
    return _search(index, row, action, beta)


@_nearest.def_vmap
def _together(size: int, batched: PyTree, index: Index, row: Array, action: Array, beta: Array):
    """Loops end when no query is left, so one over all of them is shorter than many side by side."""
    of_index, of_row, of_action, of_beta = batched
    if any(jax.tree.leaves(of_index)) or of_beta:
        axes = jax.tree.map(lambda x: 0 if x else None, (of_index, of_row, of_action, of_beta))
        found = jax.vmap(_search, in_axes=axes)(index, row, action, beta)
    else:
        row = row if of_row else jnp.broadcast_to(row, (size, *row.shape))
        action = action if of_action else jnp.broadcast_to(action, (size, *action.shape))
        found = _nearest(index, row.reshape(-1), action.reshape(-1, action.shape[-1]), beta)
        found = jax.tree.map(lambda x: x.reshape(row.shape), found)
    return found, Nearest(True, True)


def _search(index: Index, row: Array, action: Array, beta: Array) -> Nearest:
    queries, width = row.shape[0], index.state.shape[1]
    scale = jnp.concatenate([jnp.full(width, beta), jnp.ones(action.shape[1], beta.dtype)])
    key = jnp.concatenate([index.state[row], action], axis=1)
    best = jnp.full(queries, jnp.inf, key.dtype), row  # squared distances and rows

    def in_lists(size, query, _, valid, best):
        listed = index.listed[row[query], :size]
        squared = jnp.square(index.action[listed] - action[query][:, None]).sum(axis=-1)
        squared = squared + jnp.square(beta) * index.apart[row[query], :size]
        return better(best, query, valid, squared, listed)

    def in_uppers(query, _, valid, best):
        bound = _outside(index.uppers, key[query], scale)
        wanted = valid[:, None] & (bound < best[0][query][:, None])
        return _each(wanted, BOXES, functools.partial(in_boxes, query), best)

    def in_boxes(query, which, upper, valid, best):
        query = query[which]
        bound = _outside(index.boxes[upper], key[query], scale)
        wanted = valid[:, None] & (bound < best[0][query][:, None])
        return _each(wanted, LEAVES, functools.partial(in_leaves, query, upper), best)

    def in_leaves(query, upper, which, child, valid, best):
        query, leaf = query[which], upper[which] * index.boxes.shape[-1] + child
        squared = jnp.square(scale[:, None] * (index.key[leaf] - key[query][:, :, None])).sum(axis=1)
        return better(best, query, valid, squared, index.leaf[leaf])

    def better(best, query, valid, squared, rows):
        """Take what is nearer: squared f32[Q, n] of rows i32[Q, n] for `query` i32[Q], which may repeat."""
        value = jnp.where(valid, squared.min(axis=1), jnp.inf)
        found = jnp.take_along_axis(rows, squared.argmin(axis=1)[:, None], 1)[:, 0]
        after = best[0].at[query].min(value)
        wins = jnp.where((value == after[query]) & (value < best[0][query]), query, queries)
        # of equally near ones here the first row, in whatever order a device scatters
        chosen = best[1].at[wins].set(len(index.state), mode="drop").at[wins].min(found, mode="drop")
        return after, chosen

    best = in_lists(FIRST, jnp.arange(queries), None, jnp.ones(queries, bool), best)
    if index.listed.shape[1] > FIRST:
        known = SLACK * jnp.square(beta) * index.apart[row, FIRST - 1]
        best = _each((best[0] > known)[:, None], GROUP, functools.partial(in_lists, None), best)
    known = jnp.where(jnp.isinf(index.reach[row]), jnp.inf, jnp.square(beta) * index.reach[row])
    best = _each((best[0] > known)[:, None], GROUP, in_uppers, best)
    return Nearest(best[1], jnp.sqrt(best[0]))


def _outside(box: Array, key: Array, scale: Array) -> Array:
    """Bound f32[Q, n], from below, of squared distances from keys f32[Q, D] to boxes f32[(Q,) 2, D, n]."""
    low, high = box[..., 0, :, :], box[..., 1, :, :]
    gap = jnp.maximum(jnp.maximum(low - key[:, :, None], key[:, :, None] - high), 0)
    return SLACK * jnp.square(scale[:, None] * gap).sum(axis=-2)


def _each(mask: Array, size: int, step: Callable[..., PyTree], carry: PyTree) -> PyTree:
    """Fold `step(i i32[size], j i32[size], valid bool[size], carry)` over the true entries (i, j) of a matrix."""
    number = jnp.cumsum(mask.ravel().astype(jnp.int32))

    def some(done: Array, carry: PyTree) -> tuple[Array, PyTree]:
        ordinal = done + jnp.arange(size, dtype=jnp.int32)
        place = jnp.searchsorted(number, ordinal + 1).astype(jnp.int32)
        i, j = jnp.divmod(jnp.minimum(place, mask.size - 1), mask.shape[1])
        return done + size, step(i, j, ordinal < number[-1], carry)

    return jax.lax.while_loop(lambda at: at[0] < number[-1], lambda at: some(*at), (jnp.int32(0), carry))[1]


def brute_force(rows: Array, query: Array, k: int = 1) -> Nearest:
    """The k nearest of rows [N, D] to queries [B, D], nearest first, by looking at all -> fields [B, k].

    Raises: ValueError unless 1 <= k <= N.
    """
    if not 1 <= k <= len(rows):
        raise ValueError(f"k {k} must lie between 1 and the {len(rows)} rows")
    blocks = -(-len(rows) // BLOCK)
    padded = jnp.pad(rows, ((0, blocks * BLOCK - len(rows)), (0, 0)), mode="edge").reshape(blocks, BLOCK, -1)

    def look(best: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        number, there = block
        squared = jnp.square(query[:, None] - there).sum(axis=-1)
        row = number * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
        squared = jnp.where(row < len(rows), squared, jnp.inf)
        squared = jnp.concatenate([best[0], squared], axis=1)
        row = jnp.concatenate([best[1], jnp.broadcast_to(row, (len(query), BLOCK))], axis=1)
        value, place = jax.lax.top_k(-squared, k)
        return (-value, jnp.take_along_axis(row, place, 1)), None

    start = jnp.full((len(query), k), jnp.inf, query.dtype), jnp.zeros((len(query), k), jnp.int32)
    best, _ = jax.lax.scan(look, start, (jnp.arange(blocks, dtype=jnp.int32), padded))
    return Nearest(best[1], jnp.sqrt(best[0]))
