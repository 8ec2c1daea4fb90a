"""Random shifts of images against crops of padded ones in NumPy."""

import jax
import numpy as np

from core import augment
from core.types import Observation

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (300, 5, 4, 3), np.uint8)


def shifts(image, pad):
    """All (2 pad + 1)^2 moved copies of one image, f[dy, dx, H, W, C]."""
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    h, w, _ = image.shape
    n = 2 * pad + 1
    return np.stack([[padded[y : y + h, x : x + w] for x in range(n)] for y in range(n)])


OBS = Observation(IMAGES, np.zeros((300, 0)), np.arange(300.0), np.arange(300))
MOVED = jax.jit(lambda key: augment.shifted(key, OBS, 2))


def test_every_image_is_moved_by_itself():
    moved = np.asarray(MOVED(jax.random.key(0)).state)
    assert moved.dtype == np.uint8
    found = np.zeros((5, 5), int)
    for image, ours in zip(IMAGES, moved, strict=True):
        same = (shifts(image, 2) == ours).all((-1, -2, -3))
        assert same.sum() == 1
        found += same
    assert found.min() > 0  # 12 expected of each
    assert found.max() < 30


def test_keys_and_the_rest_of_an_observation():
    one, again, other = (MOVED(jax.random.key(seed)) for seed in (1, 1, 2))
    assert (one.state == again.state).all()
    assert (one.state != other.state).any()
    for ours, given in zip(one[1:], OBS[1:], strict=True):
        np.testing.assert_array_equal(ours, given)
    assert augment.shifted(jax.random.key(1), OBS, 0) is OBS
