"""Algorithms by name.  Nothing is imported before it is asked for, so listing names needs no jax."""

from __future__ import annotations

import importlib
from types import ModuleType

from core.config import choose

# name -> module with `Config` and `make(cfg, spec) -> core.algorithm.Algorithm`
NAMES = {
    "bc": "algos.bc",
    "td3_bc": "algos.td3_bc",
    "prdc": "algos.prdc",
    "iql": "algos.iql",
    "cql": "algos.cql",
    "rebrac": "algos.rebrac",
    "dw_iql": "algos.dw_iql",
    "dw_td3_bc": "algos.dw_td3_bc",
    "dw_cql": "algos.dw_cql",
    "sac": "algos.sac",
    "ppo": "algos.ppo",
    "fql": "algos.fql",
    "idql": "algos.idql",
    "dql": "algos.dql",
    "dawr": "algos.dawr",
    "chain_bc": "algos.chain_bc",
    "reinflow": "algos.reinflow",
    "dppo": "algos.dppo",
    "gaussian_ppo": "algos.gaussian_ppo",
    "gcbc": "algos.gcbc",
    "gcivl": "algos.gcivl",
    "gciql": "algos.gciql",
    "qrl": "algos.qrl",
    "crl": "algos.crl",
    "hiql": "algos.hiql",
    "ota": "algos.ota",
}


def names() -> list[str]:
    return list(NAMES)


def load(name: str) -> ModuleType:
    """The algorithm's module.  Raises: UnknownName with the nearest names."""
    return importlib.import_module(choose("algorithm", name, NAMES))
