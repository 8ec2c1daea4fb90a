"""Devices: seeds are spread over the mesh axis "seed"; a single big run spreads its batch over "data"."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core.types import Data, PyTree, RunState


def mesh(num_seeds: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ("seed", "data") mesh: as many devices along "seed" as divide the number of seeds, the rest along "data"."""
    devices = list(devices or jax.devices())
    along = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0 and len(devices) % n == 0)
    return Mesh(np.array(devices).reshape(along, -1), ("seed", "data"))


def place(run: RunState, data: Data, mesh: Mesh) -> tuple[RunState, Data]:
    """Split the seeds over the mesh and copy the data to every device; jit follows the arrays."""

    def put(tree: PyTree, spec: PartitionSpec) -> PyTree:
        return jax.device_put(tree, NamedSharding(mesh, spec))

    return put(run, PartitionSpec("seed")), put(data, PartitionSpec())


def split_batch(batch: PyTree, data: Data, mesh: Mesh) -> PyTree:
    """Inside jit: spread a batch [B, ...] over "data".

    What `sample` handed on from the data itself stays whole, and so do leaves whose first axis does not divide.
    """
    parts = mesh.shape["data"]
    whole = {id(leaf) for leaf in jax.tree.leaves(data)}

    def put(x):
        if parts == 1 or id(x) in whole or not x.ndim or x.shape[0] % parts:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data")))

    return jax.tree.map(put, batch)
