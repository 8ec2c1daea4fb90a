"""Our side of the rollout benchmark steps as many transitions as it says."""

from contextlib import ExitStack
from types import SimpleNamespace

from benchmarks import rollout
from envs.registry import Options


def test_ours_counts_every_transition(monkeypatch):
    stepped = []
    real = rollout.envs.make

    def counted(task, num_envs, options):
        env = real(task, num_envs, options)
        step = env.step
        env.step = lambda action: stepped.append(len(action)) or step(action)
        return env

    ticks = iter(range(100))
    monkeypatch.setattr(rollout.envs, "make", counted)
    monkeypatch.setattr(rollout, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    with ExitStack() as stack:
        measure = rollout.ours("mujoco/hopper-v5", 3, 4, Options(threads=1), stack)
        stepped.clear()
        assert measure() == sum(stepped) == 12
