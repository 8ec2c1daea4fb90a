"""Environments behind one adapter: `envs.make("suite/task", num_envs=...)`."""

from envs.registry import Options, make, tasks

__all__ = ["Options", "make", "tasks"]
