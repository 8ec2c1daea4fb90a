"""The command line end to end on a toy: run folders, resume after a kill, signals, refusals, tables."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import algos
from core import loop
from core.checkpoint import Checkpoints
from core.locks import alone
from core.metrics import read_lines
from envs import datasets
from experiments import hindsight, runs, tables
from experiments.cli import main
from experiments.job import Job
from tests.conftest import match_arrays

SMALL = [
    "--steps", "120", "--epoch", "20", "--save-every", "20", "--eval.every", "60", "--eval.episodes", "4",
    "--eval.envs", "2", "--config.hidden", "8", "--config.batch-size", "16",
]  # fmt: skip


def arguments(match_file, out, *more, algo="td3_bc"):
    words = ["train", algo, "toy/match", "--data.path", match_file, "--out", str(out), *SMALL, *more]
    return words if hasattr(algos.load(algo).Config, "hidden") else [net_hidden(word) for word in words]


def net_hidden(word):
    """The option of algorithms whose network has options of its own."""
    return word.replace("config.hidden", "config.net.hidden")


@pytest.fixture(scope="module")
def straight(match_file, tmp_path_factory):
    """A run of two seeds that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight")
    assert main(arguments(match_file, out, "--seeds", "0", "1", "--name", "run")) == 0
    return out / "td3_bc" / "toy/match" / "run"


def final(folder):
    kept = Checkpoints(folder / "ckpt")
    return kept.meta(kept.steps()[-1])


def untimed(folder, name="metrics.jsonl"):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_lines(folder / name)]


def test_a_run_leaves_what_rebuilds_it(straight):
    meta = json.loads((straight / "meta.json").read_text())
    assert {"command", "commit", "versions", "python", "device", "data"} <= set(meta)
    assert len(meta["data"]["sha256"]) == 64
    run = runs.load(straight)
    assert (run.algo, run.task, run.train.seeds) == ("td3_bc", "toy/match", (0, 1))
    assert run.train.config.hidden == (8,)
    assert runs.status(straight)["state"] == "done"


def test_the_last_step_is_logged_evaluated_and_saved_once(straight):
    for name, steps in [("metrics.jsonl", range(20, 121, 20)), ("eval.jsonl", (60, 120))]:
        rows = read_lines(straight / name)
        assert [(r["step"], r["seed"]) for r in rows] == [(step, seed) for step in steps for seed in (0, 1)]
    assert Checkpoints(straight / "ckpt").steps()[-1] == 120
    assert all(len(row["returns"]) == 4 for row in read_lines(straight / "eval.jsonl"))


ON_POLICY = ("ppo", "reinflow", "dppo", "gaussian_ppo", "dawr")


@pytest.mark.parametrize(
    ("algo", "more"),
    [*((algo, []) for algo in hindsight.ALGOS), ("gcivl", ["--env.history", "3", "--config.last-alone"])],
    ids=[*hindsight.ALGOS, "gcivl of three frames"],
)
def test_every_goal_conditioned_algorithm_trains_by_the_command_line(algo, more, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "state": rng.uniform(1, 6, (62, 2)).astype(np.float32),
        "action": rng.uniform(-1, 1, (62, 2)).astype(np.float32),
        "reward": np.zeros(62, np.float32), "terminated": np.zeros(62, bool), "length": np.full(2, 30, np.int32),
        "success": np.zeros(2, np.float32),
    }  # fmt: skip
    datasets.write(tmp_path / "maze.npz", arrays, {"task": "toy/pointmaze"})
    sizes = ["--config.batch-size", "8", "--config.actor-hidden", "8", "--eval.episodes", "10", "--epoch", "5"]
    once = ["--steps", "10", "--eval.every", "10", "--save-every", "10", "--name", "run", "--out", str(tmp_path)]
    data = ["--data.path", str(tmp_path / "maze.npz")]
    assert main(["train", algo, "toy/pointmaze", *data, *sizes, *once, *more]) == 0
    folder = tmp_path / algo / "toy/pointmaze" / "run"
    assert runs.status(folder)["state"] == "done"
    assert all(np.isfinite(value) for row in untimed(folder) for value in row.values())


OTHERS = ("td3_bc", *ON_POLICY, *hindsight.ALGOS)


@pytest.mark.parametrize("algo", [name for name in algos.names() if name not in OTHERS])
def test_every_algorithm_trains_by_the_command_line(algo, match_file, tmp_path):
    command = arguments(match_file, tmp_path, "--steps", "40", "--eval.every", "40", "--name", "run", algo=algo)
    assert main(command) == 0
    folder = tmp_path / algo / "toy/match" / "run"
    assert runs.status(folder)["state"] == "done"
    rows = untimed(folder)
    assert [row["step"] for row in rows] == [20, 40]
    assert all(np.isfinite(value) for row in rows for value in row.values())


def test_resuming_compiles_nothing_that_the_cache_holds():
    from benchmarks.updates import resume_compilations

    hits, misses = resume_compilations()
    assert misses == 0
    assert hits > 5


def test_killed_and_resumed_equals_never_killed(match_file, tmp_path):
    longer = ["--seeds", "0", "1", "--steps", "600", "--eval.every", "300", "--name"]
    assert main(arguments(match_file, tmp_path, *longer, "straight")) == 0
    straight, folder = (tmp_path / "td3_bc" / "toy/match" / name for name in ("straight", "run"))
    command = arguments(match_file, tmp_path, *longer, "run")
    process = subprocess.Popen([sys.executable, "-m", "experiments.cli", *command], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not Checkpoints(folder / "ckpt").steps() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = Checkpoints(folder / "ckpt").steps()
    assert before
    assert before[-1] < 600
    assert main(["resume", str(folder)]) == 0
    assert final(folder)["digest"] == final(straight)["digest"]
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert untimed(folder, name) == untimed(straight, name)


def test_sigterm_saves_and_says_its_code(match_file, tmp_path):
    command = arguments(match_file, tmp_path, "--steps", "1000000", "--save-every", "1000000", "--name", "run",
                        "--eval.every", "1000000")  # fmt: skip
    folder = tmp_path / "td3_bc" / "toy/match" / "run"
    process = subprocess.Popen([sys.executable, "-m", "experiments.cli", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (folder / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"rheostat resume {folder}" in errors
    status = runs.status(folder)
    assert status["state"] == "stopped"
    assert Checkpoints(folder / "ckpt").steps() == [status["step"]]


def refused(capsys, *args):
    assert main([str(a) for a in args]) == 2
    return capsys.readouterr().err


def test_an_existing_run_is_refused_with_the_resume_command(match_file, straight, capsys):
    out = straight.parents[2].parent
    said = refused(capsys, *arguments(match_file, out, "--seeds", "0", "1", "--name", "run"))
    assert f"rheostat resume {straight}" in said


def test_a_finished_run_says_how_to_train_longer(straight, capsys):
    assert "--steps 240" in refused(capsys, "resume", straight)


def test_unknown_names_are_refused_with_the_nearest(match_file, tmp_path, capsys):
    assert "td3_bc" in refused(capsys, "train", "td3bc", "toy/match")
    assert "toy/match" in refused(capsys, "train", "td3_bc", "toy/mach")
    assert "train" in refused(capsys, "trian")
    with pytest.raises(SystemExit) as stop:
        main(arguments(match_file, tmp_path, "--config.hiden", "8"))
    assert stop.value.code == 2
    assert "--config.hidden" in capsys.readouterr().err


def test_bad_numbers_and_files_are_refused_before_training(match_file, tmp_path, capsys):
    assert "whole number of epochs" in refused(capsys, *arguments(match_file, tmp_path, "--steps", "130"))
    assert "not a multiple of 2 simulators" in refused(capsys, *arguments(match_file, tmp_path, "--eval.episodes", "5"))
    assert "no such dataset" in refused(capsys, *arguments(tmp_path / "no.npz", tmp_path))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(Path(match_file).read_bytes()[:2000])
    assert f"{cut}: cannot be read" in refused(capsys, *arguments(cut, tmp_path))
    any_task = ["--data.path", match_file, "--data.any-task", "--out", tmp_path]
    assert "single-task" in refused(capsys, "train", "td3_bc", "toy/pointmaze", *any_task)
    assert "made on toy/match, not on toy/pointmass" in refused(capsys, "train", "bc", "toy/pointmass", *any_task[:2])
    assert "rows of shape (2,)" in refused(capsys, "train", "bc", "toy/pointmass", *any_task)
    assert "without chunks" in refused(capsys, *arguments(match_file, tmp_path, "--env.chunk", "4"))
    assert "batch size 0" in refused(capsys, *arguments(match_file, tmp_path, "--config.batch-size", "0"))
    assert "between 0 and 2^31" in refused(capsys, *arguments(match_file, tmp_path, "--seeds", "4294967296"))
    assert "unknown" in refused(capsys, *arguments(match_file, tmp_path, "--config.weights", "torchy"))
    assert "size must be at least 1" in refused(capsys, *arguments(match_file, tmp_path, "--config.hidden", "0"))
    assert "--config.alpha nan" in refused(capsys, *arguments(match_file, tmp_path, "--config.alpha", "nan"))
    assert "without '/'" in refused(capsys, *arguments(match_file, tmp_path, "--name", "../x"))
    assert "period" in refused(capsys, *arguments(match_file, tmp_path, "--config.actor-period", "0"))
    assert "tasks 1 to 1" in refused(capsys, *arguments(match_file, tmp_path, "--eval.tasks", "2"))
    assert not list(tmp_path.rglob("config.json"))


def test_histories_train(match_file, tmp_path):
    assert main(arguments(match_file, tmp_path, "--env.history", "2", "--steps", "60", "--name", "run")) == 0


def test_a_failed_seed_is_marked_and_the_others_finish(match_file, tmp_path, monkeypatch):
    """A seed whose actor starts as NaN: frozen, marked everywhere, not counted."""
    begin = loop.begin

    def poisoned(algorithm, start, seeds):
        run = begin(algorithm, start, seeds)
        params = jax.tree.map(lambda x: x.at[1].set(jax.numpy.nan), run.algo.actor.params)
        return run._replace(algo=run.algo._replace(actor=run.algo.actor._replace(params=params)))

    monkeypatch.setattr(loop, "begin", poisoned)
    assert main(arguments(match_file, tmp_path, "--seeds", "0", "1", "2", "--name", "run")) == 0
    folder = tmp_path / "td3_bc" / "toy/match" / "run"
    assert runs.status(folder)["failed_seeds"] == [1]
    last = {row["seed"]: row for row in read_lines(folder / "eval.jsonl")}
    assert [last[seed]["failed"] for seed in (0, 1, 2)] == [False, True, False]
    (row,) = tables.rows([folder], 1, "return")
    assert row.seeds == "2/3"


def test_all_seeds_failed_is_exit_1_and_stays_so(match_file, tmp_path, capsys):
    command = arguments(
        match_file, tmp_path, "--config.critic-lr", "1e30", "--config.actor-lr", "1e30", "--name", "run"
    )
    assert main(command) == 1
    assert "every seed turned non-finite by step 20" in capsys.readouterr().err
    folder = tmp_path / "td3_bc" / "toy/match" / "run"
    status = runs.status(folder)
    assert (status["state"], status["step"], status["failed_seeds"]) == ("failed", 20, [0])
    assert main(["resume", str(folder)]) == 1
    assert len(read_lines(folder / "metrics.jsonl")) == 1
    assert runs.status(folder)["failed_seeds"] == [0]


def test_a_run_folder_can_be_moved_and_judged_without_its_data(straight, tmp_path, capsys):
    folder = tmp_path / "elsewhere"
    shutil.copytree(straight, folder)
    values = json.loads((folder / "config.json").read_text())
    values["data"]["path"] = "gone.npz"
    (folder / "config.json").write_text(json.dumps(values))
    assert main(["eval", str(folder), "--episodes", "2", "--envs", "2", "--best"]) == 0
    assert "gone.npz: no such dataset" in refused(capsys, "resume", folder, "--steps", 240)
    found = json.loads((straight / "config.json").read_text())["data"]["path"]
    assert main(["resume", str(folder), "--steps", "140", "--data", found]) == 0


def test_resuming_at_an_older_step_drops_the_later_ones(straight, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    older = Checkpoints(folder / "ckpt").steps()[-2]
    assert main(["resume", str(folder), "--checkpoint", str(older)]) == 0
    assert final(folder)["digest"] == final(straight)["digest"]
    assert untimed(folder) == untimed(straight)


def signalling(folder, at):
    """A `Job.judge` that gets a SIGTERM while it judges update `at`."""
    judge = Job.judge

    def judged(self, evaluator, state, step, seed):
        if step == at and not (folder / "asked").exists():
            (folder / "asked").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return judge(self, evaluator, state, step, seed)

    return judged


@pytest.mark.parametrize("at", [60, 120])
def test_a_stop_during_an_evaluation_loses_nothing(at, match_file, tmp_path, straight, monkeypatch):
    """On the host an evaluation ends at once; the state is saved, and the resumed run makes up for it."""
    command = arguments(match_file, tmp_path, "--seeds", "0", "1", "--env.host", "--name", "run")
    folder = tmp_path / "td3_bc" / "toy/match" / "run"
    monkeypatch.setattr(Job, "judge", signalling(tmp_path, at))
    assert main(command) == 128 + signal.SIGTERM
    assert (runs.status(folder)["state"], runs.status(folder)["saved"]) == ("stopped", at)
    assert at not in {row["step"] for row in read_lines(folder / "eval.jsonl")}
    (tmp_path / "asked").unlink()
    assert main(["resume", str(folder)]) == 128 + signal.SIGTERM  # once more, in the evaluation that is made up for
    assert runs.status(folder)["saved"] == at
    assert main(["resume", str(folder)]) == 0
    assert runs.status(folder)["state"] == "done"
    assert [row["step"] for row in read_lines(folder / "eval.jsonl")] == [60, 60, 120, 120]
    assert final(folder)["digest"] == final(straight)["digest"]


def test_a_run_that_failed_before_its_first_checkpoint_begins_anew(match_file, tmp_path, straight, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    command = arguments(match_file, tmp_path, "--seeds", "0", "1", "--name", "run")
    folder = tmp_path / "td3_bc" / "toy/match" / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        assert main(command) == 1
    assert "No space left" in capsys.readouterr().err
    assert main(["resume", str(folder)]) == 0
    assert final(folder)["digest"] == final(straight)["digest"]
    assert untimed(folder) == untimed(straight)


def test_a_run_of_two_devices_goes_on_with_one(match_file, tmp_path):
    command = arguments(
        match_file, tmp_path, "--seeds", "0", "1", "--steps", "40", "--eval.every", "40", "--name", "run"
    )
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-m", "experiments.cli", *command], env=env, check=True, timeout=300)
    folder = tmp_path / "td3_bc" / "toy/match" / "run"
    assert json.loads((folder / "meta.json").read_text())["device"].startswith("2 x")
    assert main(["eval", str(folder), "--episodes", "2", "--envs", "2"]) == 0
    assert main(["resume", str(folder), "--steps", "80"]) == 0


def test_ctrl_c_in_process_saves(match_file, tmp_path):
    """The handler is in force while training: a signal between epochs ends the run with its state saved."""
    from experiments.train import _Live

    seen = _Live._between

    def interrupt(self, report):
        if report.step == 40:
            os.kill(os.getpid(), signal.SIGINT)
        seen(self, report)

    before = signal.getsignal(signal.SIGINT)
    command = arguments(match_file, tmp_path, "--name", "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Live, "_between", interrupt)
        assert main(command) == 128 + signal.SIGINT
    folder = tmp_path / "td3_bc" / "toy/match" / "run"
    assert runs.status(folder)["state"] == "stopped"
    assert Checkpoints(folder / "ckpt").steps()[-1] == 40
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_of_another_config_is_refused(straight, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    values = json.loads((folder / "config.json").read_text())
    values["config"]["alpha"] = 9.0
    (folder / "config.json").write_text(json.dumps(values))
    assert "another configuration" in refused(capsys, "resume", folder, "--steps", 240)


def test_a_run_can_be_trained_longer(straight, tmp_path, match_file):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    assert main(["resume", str(folder), "--steps", "180"]) == 0
    assert final(folder)["step"] == 180
    assert runs.load(folder).train.steps == 180


def test_a_live_run_is_not_resumed_twice(straight, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    before = (folder / "metrics.jsonl").read_text()
    with alone(folder):
        assert "another process is at work" in refused(capsys, "resume", folder, "--steps", 240)
    assert (folder / "metrics.jsonl").read_text() == before
    assert runs.load(folder).train.steps == 120


def test_a_killed_run_is_listed_as_killed(straight, tmp_path, capsys):
    shutil.copytree(straight, tmp_path / "a")
    shutil.copytree(straight, tmp_path / "b")
    status = {**runs.status(straight), "state": "running"}
    (tmp_path / "a" / "status.json").write_text(json.dumps(status))
    (tmp_path / "b" / "status.json").write_text("{")
    assert main(["list", "runs", "--root", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "killed" in first
    assert "damaged" in second


def test_checkpoints_that_are_gone_are_not_trained_anew(straight, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "ckpt")
    assert "are gone" in refused(capsys, "resume", folder, "--steps", 240)
    assert len(read_lines(folder / "metrics.jsonl")) == 12


def test_other_data_than_it_was_begun_with_is_refused(straight, tmp_path, capsys):
    other = tmp_path / "other.npz"
    datasets.write(other, match_arrays(seed=1), {"task": "toy/match"})
    said = refused(capsys, "resume", straight, "--steps", 240, "--data", other)
    assert f"{other} is not the data that {straight} was begun with" in said


@pytest.mark.parametrize("text", ["[]", "{}", '{"algo": "bc", "task": "toy/match", "config": 3}'])
def test_a_damaged_config_is_refused(text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert "damaged" in refused(capsys, "resume", tmp_path)


def test_the_same_seed_is_not_counted_twice(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "a")
    shutil.copytree(straight, tmp_path / "b")
    assert [(row.runs, row.seeds) for row in tables.rows([tmp_path], 1, "return")] == [("a", "2/2"), ("b", "2/2")]


def test_eval_and_tables(straight, tmp_path, capsys):
    assert main(["eval", str(straight), "--episodes", "6", "--envs", "3"]) == 0
    fresh = read_lines(straight / "eval_fresh.jsonl")
    assert [len(row["returns"]) for row in fresh] == [6, 6]
    assert main(["tables", str(straight), "--out", str(tmp_path), "--last", "2"]) == 0
    (row,) = csv.DictReader((tmp_path / "table.csv").open())
    scores = {seed: [r["return"] for r in read_lines(straight / "eval.jsonl") if r["seed"] == seed] for seed in (0, 1)}
    last = [np.mean(s[-2:]) for s in scores.values()]
    assert float(row["final"]) == pytest.approx(np.mean([s[-1] for s in scores.values()]), rel=1e-5)
    assert float(row["last"]) == pytest.approx(np.mean(last), rel=1e-5)
    assert float(row["last_se"]) == pytest.approx(np.std(last, ddof=1) / np.sqrt(2), rel=1e-5)
    assert row["seeds"] == "2/2"
    assert "td3_bc" in (tmp_path / "table.md").read_text()


def test_failed_and_missing_seeds_are_counted(straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    rows = read_lines(folder / "eval.jsonl")
    for row in rows:
        row["failed"] = row["seed"] == 1
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = tables.rows([folder], 1, "return")
    assert row.seeds == "1/2"
    assert np.isnan(row.final_se)


def test_help_and_lists(capsys):
    assert main(["--help"]) == 0
    assert main(["list", "algos"]) == 0
    assert main(["list", "tasks"]) == 0
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("resume RUN", "td3_bc", "toy/match", "metaworld/push", "mujoco/hopper-v5", "ogbench/"):
        assert word in said


def test_parsing_imports_no_jax():
    code = "import sys; from experiments.cli import main; main(['list', 'tasks']); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_data_without_a_whole_chunk_are_refused(match_file, tmp_path, capsys):
    command = arguments(match_file, tmp_path, "--env.chunk", "11", algo="chain_bc")  # episodes of 10 steps
    assert main(command) != 0
    assert "--env.chunk 11" in capsys.readouterr().err
