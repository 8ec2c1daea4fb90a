"""`rheostat video`: what is filmed, and how it refuses."""

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import imageio_ffmpeg
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from core.algorithm import Algorithm
from core.config import ConfigError
from core.seeds import slot_seeds
from core.types import ActOut
from envs import datasets, render
from envs.registry import Options
from envs.render import RenderError
from experiments import runs, video
from experiments.cli import main
from experiments.options import EvalOptions
from experiments.video import Filmed, View, record


def frames(path, size):
    """The pictures of an mp4, uint8[T, size, size, 3], and what ffmpeg says of it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, size, size, 3), done.stderr.decode()


@pytest.fixture(scope="module")
def hopper_run(tmp_path_factory):
    """Two seeds of behaviour cloning on made-up data, observed through a history."""
    folder, rng = tmp_path_factory.mktemp("video"), np.random.default_rng(0)
    rows = 3 * 11
    arrays = {
        "state": rng.normal(size=(rows, 11)).astype(np.float32),
        "action": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "reward": np.zeros(rows, np.float32), "terminated": np.zeros(rows, bool),
        "length": np.full(3, 10, np.int32), "success": np.zeros(3, np.float32),
    }  # fmt: skip
    datasets.write(folder / "hopper.npz", arrays, {"task": "mujoco/hopper-v5"})
    small = [
        "--steps", "20", "--epoch", "10", "--save-every", "10", "--eval.every", "20", "--eval.episodes", "1",
        "--eval.envs", "1", "--config.hidden", "8", "--config.batch-size", "8", "--env.history", "2",
        "--env.max-steps", "30", "--seeds", "3", "4", "--name", "run",
    ]  # fmt: skip
    data = ["--data.path", str(folder / "hopper.npz"), "--out", str(folder)]
    assert main(["train", "bc", "mujoco/hopper-v5", *data, *small]) == 0
    return folder / "bc" / "mujoco/hopper-v5" / "run"


def test_a_run_from_the_command_line(hopper_run, capsys):
    code = main(["video", str(hopper_run), "--episodes", "2", "--size", "64", "--seed-index", "1", "--every", "3"])
    said = capsys.readouterr()
    if code == 1:
        pytest.skip(said.err)
    path = hopper_run / "video-20-seed4.mp4"
    assert f"{path}: the policy of seed 4 at step 20 in mujoco/hopper-v5" in said.out
    rows = [line.split() for line in said.out.splitlines() if line.strip().startswith("3000")]
    assert [row[0] for row in rows] == ["3000000", "3000001"]
    pictures, told = frames(path, 64)
    assert "h264" in told
    assert "20 fps" in told
    # the first state of each episode, and each third one but the last, which the simulator renews at once
    assert len(pictures) == sum(1 + (int(row[-1]) - 1) // 3 for row in rows)
    assert pictures.std() > 10
    assert np.abs(pictures[0].astype(int) - pictures[3]).max() > 30
    assert not list(hopper_run.glob("*.part*"))


def test_the_episodes_are_those_of_an_evaluation(hopper_run, tmp_path):
    """The policy is seed 3's at its checkpoint, deterministic, with its memory of states."""
    try:
        shown = record(hopper_run, tmp_path / "a.mp4", View(episodes=1, seed=slot_seeds(7, 1)[0], size=16), step=10)
    except RenderError as error:
        pytest.skip(str(error))
    job, _, state = video.checkpoint(hopper_run, 10)
    judged = job.evaluator(1, 1)(state.algo, [7, 7])
    assert (shown.step, shown.seed, shown.task) == (10, 3, "mujoco/hopper-v5")
    assert shown.episodes[0].steps == judged.length[0, 0, 0]
    np.testing.assert_allclose(shown.episodes[0].ret, judged.ret[0, 0, 0], rtol=1e-5)


def test_refusals(hopper_run, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "explained", contextlib.nullcontext)
    for view, said in (
        (View(size=33), "even"), (View(episodes=0), "--episodes 0"), (View(task=2), "tasks 1 to 1"),
        (View(seed=-1), "--seed -1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            record(hopper_run, tmp_path / "a.mp4", view)
    with pytest.raises(ConfigError, match="2 seeds, 0 to 1"):
        record(hopper_run, tmp_path / "a.mp4", seed_index=2)
    with pytest.raises(ConfigError, match=r"must end in \.mp4"):
        record(hopper_run, tmp_path / "a.gif")
    monkeypatch.setattr(Filmed, "render", lambda *_: np.zeros((16, 16, 3), np.uint8))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "false")
    with pytest.raises(RenderError, match="ffmpeg failed"):
        record(hopper_run, tmp_path / "a.mp4", View(size=16))
    assert not list(tmp_path.iterdir())


def test_two_ways_to_choose_a_checkpoint_are_refused(hopper_run, capsys):
    for command in ("eval", "video"):
        code = main([command, str(hopper_run), "--best", "--checkpoint", "10"])
        said = capsys.readouterr().err
        if code == 1:
            pytest.skip(said)
        assert code == 2
        assert "--best and --checkpoint 10 both choose" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--episodes", "5"], "--episodes 5 is not a multiple of 10 simulators, which play as many each: "
         "change it or --envs 10"),
        (["--episodes", "0"], "--episodes 0 must be at least 1"),
        (["--envs", "0"], "--envs 0 must be at least 1"),
        (["--seed", "-1"], "--seed -1"),
    ],
)  # fmt: skip
def test_an_evaluation_that_cannot_be_names_its_option(hopper_run, capsys, options, said):
    assert main(["eval", str(hopper_run), *options]) == 2
    assert f"rheostat: {said}" in capsys.readouterr().err


def test_without_a_display_it_says_so_each_time_and_nothing_else(tmp_path):
    """In a process of its own: MuJoCo takes its backend when it is imported."""
    program = (
        "import mujoco\n"
        "from envs import render\n"
        "studio = render.Studio(mujoco.MjModel.from_xml_string('<mujoco/>'))\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        studio.frame(None, -1, 16)\n"
        "    except render.RenderError as error:\n"
        "        print('refused:', error)\n"
    )
    hidden = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env={**hidden, "MUJOCO_GL": "glx"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.count("refused: rendering through glx failed") == 2
    assert "Traceback" not in done.stderr


def test_without_a_renderer_it_says_what_to_install(hopper_run, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "choose_backend", lambda: "")
    with pytest.raises(RenderError, match="apt-get install libegl1"):
        record(hopper_run, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def eval_floor(task, options=None, tasks=()):
    """One seed of a policy that does nothing, on any task: what `checkpoint` gives."""
    options = options or Options()
    env = envs.make(task, 1, options)
    env.close()

    def act(state, obs, carry, key):
        return ActOut(jnp.zeros((obs.step.shape[0], *env.spec.action_shape)), carry)

    algorithm = Algorithm(init=None, update=None, act=act, act_eval=act)
    train = SimpleNamespace(env=options, eval=EvalOptions(tasks=tasks), seeds=(0,))
    run = runs.Run(None, "still", task, train)
    job = SimpleNamespace(algorithm=algorithm, spec=env.spec, chosen=train, run=run)
    return job, 5, SimpleNamespace(algo={"none": np.zeros(1)})


@pytest.fixture
def film(monkeypatch, tmp_path):
    """Records, and gives back what was shown and the video; pictures are those of the simulator's step."""

    def recorded(task, view, options=None, tasks=()):
        loaded = eval_floor(task, options, tasks)
        monkeypatch.setattr(runs, "load", lambda _: loaded[0].run)
        monkeypatch.setattr(video, "checkpoint", lambda *_: loaded)
        shown = []
        monkeypatch.setattr(video.Film, "add", lambda self, picture: shown.append(picture))
        monkeypatch.setattr(video.Film, "__exit__", lambda *_: None)
        try:
            return shown, record(tmp_path, tmp_path / "a.mp4", view)
        except RenderError as error:
            pytest.skip(str(error))

    return recorded


def test_a_chunk_is_filmed_in_between(film):
    """Three primitive steps per chunk, a frame for each second one: as many as without chunks."""
    view = View(episodes=1, size=16, every=2)
    shown, chunked = film("mujoco/halfcheetah-v5", view, Options(chunk=3, max_steps=10))
    assert chunked.episodes[0].steps == 10
    assert len(shown) == 1 + 4
    plain, _ = film("mujoco/halfcheetah-v5", view, Options(max_steps=10))
    np.testing.assert_array_equal(shown, plain)


def test_goal_tasks_are_those_asked_for_or_those_of_the_evaluation(film):
    view = View(episodes=3, size=16, every=20)
    options = Options(max_steps=5)
    _, dealt = film("ogbench/pointmaze-medium", view, options, tasks=(2, 4))
    assert [e.task for e in dealt.episodes] == [2, 4, 2]
    shown, chosen = film("ogbench/pointmaze-medium", view._replace(task=5), options, tasks=(2, 4))
    assert [e.task for e in chosen.episodes] == [5, 5, 5]
    other, _ = film("ogbench/pointmaze-medium", view._replace(task=1), options)
    assert np.abs(shown[0].astype(int) - other[0]).max() > 30  # the ball starts elsewhere
    assert [e.success for e in chosen.episodes] == [0] * 3


def test_a_toy_is_refused(film):
    for host in (False, True):
        with pytest.raises(ConfigError, match="toy/match has no camera"):
            film("toy/match", View(), Options(host=host))


def test_mjx_is_shown_in_mujoco(film):
    pytest.importorskip("mujoco.mjx")
    shown, shot = film("mjx/hopper-v5", View(episodes=1, size=16), Options(max_steps=9))
    assert shot.task == "mujoco/hopper-v5"
    assert len(shown) == 3
