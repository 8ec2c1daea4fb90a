"""Jobs that are dealt out: whoever is free gets the next one, which may depend on what is finished."""

import functools
import time

import pytest

from core.config import ConfigError
from envs.workers import Pool, WorkerError


class Clerk:
    """Finishes job 0 only when the last of the others is done."""

    def __init__(self, folder):
        self.folder = folder

    def work(self, job):
        if job < 0:
            raise ConfigError(f"no job {job}")
        deadline = time.monotonic() + 30
        while job == 0 and not (self.folder / "4").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        (self.folder / str(job)).touch()
        return 10 * job

    def close(self):
        pass


@pytest.fixture
def pool(tmp_path):
    yield (made := Pool([functools.partial(Clerk, tmp_path)] * 2))
    made.close()


def test_nobody_waits_for_the_slowest(pool):
    finished, known = [], []

    def jobs():
        for job in range(5):
            known.append(list(finished))
            yield (job,)

    for (job,), value in pool.each("work", jobs()):
        assert value == 10 * job
        finished.append(job)
    assert sorted(finished) == [0, 1, 2, 3, 4]
    assert known == [[], [], [1], [1, 2], [1, 2, 3]]  # each asked for after what came before it was taken
    assert pool.call_one(0, "work", 7) == 70


def test_a_refused_job_ends_the_workers(pool):
    with pytest.raises(ConfigError, match="no job -1"):
        list(pool.each("work", iter([(1,), (-1,)])))
    with pytest.raises(WorkerError, match="closed"):
        pool.call_one(0, "work", 7)
