"""How our processes set JAX up: a persistent compilation cache, and on a CPU who computes."""

from __future__ import annotations

import os
import platform
import zlib
from pathlib import Path


def cache(name: str) -> Path:
    """Where something is kept that can be made again: below $RHEOSTAT_CACHE or the user's cache folder."""
    base = os.environ.get("RHEOSTAT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "rheostat"
    return Path(base).expanduser() / name


def cache_folder() -> Path:
    """Of compiled programs, one per kind of processor: a cluster's nodes share a home."""
    info = Path("/proc/cpuinfo")
    flags = [line for line in info.read_text().splitlines() if line.startswith("flags")][:1] if info.exists() else []
    kind = f"{platform.machine()}-{zlib.crc32(repr(flags).encode()):08x}"
    return cache("jax") / kind


def configure(acting: bool = False) -> None:
    """Set JAX's options; before its first computation.

    Every program is kept, however small (JAX's own thresholds store 1 of 40 of ours), and read back the next time.
    Args: acting: nothing but policies' calls will be computed.  On a CPU it is then done by the thread that asks, by
        which 64 observations take 0.07 instead of 0.11 ms; a program of updates would take a fifth longer.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if acting:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
