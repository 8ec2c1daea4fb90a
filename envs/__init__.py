"""Environments behind one adapter: `envs.make("suite/task", num_envs=...)`."""

from envs.registry import Options, make, suites, tasks

__all__ = ["Options", "make", "suites", "tasks"]
