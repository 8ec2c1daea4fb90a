"""JAX's persistent compilation cache, on by default: a program compiled once on a machine is read back."""

from __future__ import annotations

import os
import platform
import zlib
from pathlib import Path


def folder() -> Path:
    """Below $RHEOSTAT_CACHE or the user's cache folder, one per kind of processor: a cluster's nodes share a home."""
    base = os.environ.get("RHEOSTAT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "rheostat"
    info = Path("/proc/cpuinfo")
    flags = [line for line in info.read_text().splitlines() if line.startswith("flags")][:1] if info.exists() else []
    kind = f"{platform.machine()}-{zlib.crc32(repr(flags).encode()):08x}"
    return Path(base).expanduser() / "jax" / kind


def enable() -> None:
    """Keep every program, however small: JAX's own thresholds store 1 of 40 of ours."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
