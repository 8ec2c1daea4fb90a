"""Checkpoints: bit for bit, last and best kept, damaged and foreign ones refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.checkpoint import CheckpointError, Checkpoints, digest


def tree(x: float):
    return {"w": jnp.full((3, 2), x), "key": jax.random.key(3), "step": jnp.int32(7), "flag": jnp.array([True])}


def same(a, b) -> bool:
    return digest(a) == digest(b)


def test_round_trip_keeps_every_bit(tmp_path):
    kept = Checkpoints(tmp_path / "ckpt")
    state = tree(0.1)
    kept.save(10, state, "config")
    step, back = kept.restore(jax.eval_shape(lambda: tree(0.0)), "config")
    assert step == 10
    assert same(back, state)
    assert not same(back, tree(0.2))
    np.testing.assert_array_equal(jax.random.normal(back["key"], (3,)), jax.random.normal(state["key"], (3,)))


def test_last_two_and_best_stay(tmp_path):
    kept = Checkpoints(tmp_path / "ckpt", keep=2)
    for step, score in [(1, 0.5), (2, 9.0), (3, None), (4, 1.0), (5, 2.0)]:
        kept.save(step, tree(step), "config")
        if score is not None:
            kept.score(step, score)
    kept.score(5, float("nan"))  # no score at all
    assert kept.steps() == [2, 4, 5]
    assert kept.best() == 2
    kept.score(4, 99.0)
    kept.drop_after(2)
    assert kept.steps() == [2]
    kept.save(4, tree(4), "config")
    assert kept.best() == 2  # the score of the dropped one is forgotten
    (tmp_path / "ckpt" / "scores.json").write_text("{")
    assert kept.best() is None


def damage(folder):
    """Change one byte in the middle of every larger array file."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 200 and "state" in path.parts[-3:-1] + path.parts:
            blob = bytearray(path.read_bytes())
            blob[len(blob) // 2] ^= 0xFF
            path.write_bytes(bytes(blob))


def test_damaged_is_refused_and_the_older_named(tmp_path):
    kept = Checkpoints(tmp_path / "ckpt")
    kept.save(1, tree(1), "config")
    kept.save(2, tree(2), "config")
    damage(tmp_path / "ckpt" / "000000002" / "state")
    with pytest.raises(CheckpointError, match=r"checkpoint 2 .* refused: .*--checkpoint 1"):
        kept.restore(tree(0), "config")
    assert same(kept.restore(tree(0), "config", step=1)[1], tree(1))


def test_cut_off_is_refused(tmp_path):
    kept = Checkpoints(tmp_path / "ckpt")
    kept.save(1, tree(1), "config")
    for path in (tmp_path / "ckpt" / "000000001" / "meta").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no older one can be used"):
        kept.restore(tree(0), "config")


def test_foreign_and_missing_are_refused(tmp_path):
    kept = Checkpoints(tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        kept.restore(tree(0), "config")
    kept.save(1, tree(1), "config")
    with pytest.raises(CheckpointError, match="another configuration"):
        kept.restore(tree(0), "other")
    with pytest.raises(CheckpointError, match="no checkpoint 5"):
        kept.restore(tree(0), "config", step=5)


def test_a_full_disk_leaves_the_older_ones(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path / "ckpt")
    kept.save(1, tree(1), "config")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept._orbax, "save", full)
    with pytest.raises(OSError, match=r"No space left.*\[1\]"):
        kept.save(2, tree(2), "config")
    assert kept.steps() == [1]
