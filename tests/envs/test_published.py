"""Published datasets by name: looked up locally, downloaded from their mirrors, checked, or refused with what to do."""

import functools
import hashlib
import http.server
import threading

import gymnasium
import numpy as np
import pytest

from core.config import UnknownName
from core.dataset import DataError
from envs import datasets
from envs.mujoco import IDS
from envs.readers import published
from envs.readers.published import Mirror
from tests.envs import foreign

NAME = "d4rl/hopper-medium-v2"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, no other data folder, and no file of the libraries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RHEOSTAT_DATA", raising=False)
    monkeypatch.setattr(published, "LIBRARIES", {"d4rl": str(tmp_path / "library")})
    return tmp_path


@pytest.fixture
def offer(here, monkeypatch):
    """Sets the mirrors of a name: (address, SHA-256 or "") each."""

    def offer(*mirrors, name=NAME):
        table = tuple((name, Mirror(sha256, url, "")) for url, sha256 in mirrors)
        monkeypatch.setattr(published, "table", lambda: table)

    return offer


@pytest.fixture
def served(tmp_path_factory):
    """A folder served over http on loopback -> (folder, address)."""
    folder = tmp_path_factory.mktemp("mirror")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path == "/cut.hdf5":  # promises more than it sends
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"\x89HDF\r\n\x1a\n" + bytes(1000))
            else:
                super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def dataset_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    foreign.hdf5(path, foreign.flat("...T...L.."))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left(here):
    return sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())


def test_the_table_is_whole():
    names = [name for name, _ in published.table()]
    assert len({name for name in names if name.startswith("d4rl/")}) == 115
    assert len(set(names)) < len(names)  # some have several mirrors
    for name, mirror in published.table():
        assert mirror.url.startswith("https://") or mirror.page.startswith("https://"), name
        assert mirror.sha256 == "" or len(bytes.fromhex(mirror.sha256)) == 32, name
    for name in {name for name in names if "(" not in name}:
        assert len({mirror.sha256 for mirror in published.mirrors(name)}) == 1, name


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (NAME, "https://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/hopper_medium-v2.hdf5"),
        (
            "minari/mujoco/hopper/medium-v0",
            "https://huggingface.co/datasets/farama-minari/mujoco/resolve/main/hopper/medium-v0/data/main_data.hdf5",
        ),
        (
            "ogbench/cube-single-play-v0-val",
            "https://rail.eecs.berkeley.edu/datasets/ogbench/cube-single-play-v0-val.npz",
        ),
    ],
)
def test_where_published_sets_are(name, url):
    assert published.mirrors(name)[0].url == url


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("d4rl/hopper-medium-v2", "mujoco/hopper-v4"),
        ("/some/where/halfcheetah_medium_expert-v2.hdf5", "mujoco/halfcheetah-v4"),
        ("d4rl/walker2d-full-replay-v1", "mujoco/walker2d-v4"),
        ("d4rl/antmaze-large-play-v2", None),
        ("d4rl/pen-human-v1", None),
        ("minari/mujoco/humanoid/expert-v0", "mujoco/humanoid-v5"),
        ("~/mujoco/hopper/medium-v0/data/main_data.hdf5", "mujoco/hopper-v5"),
        ("minari/D4RL/pointmaze/umaze-v2", None),
        ("ogbench/pointmaze-medium-navigate-v0", "ogbench/pointmaze-medium"),
        ("ogbench/humanoidmaze-giant-stitch-v0-val", "ogbench/humanoidmaze-giant"),
        ("ogbench/antsoccer-arena-navigate-v0", "ogbench/antsoccer-arena"),
        ("visual-cube-double-noisy-v0.npz", "ogbench/visual-cube-double"),
        ("scene-play-v0.npz", "ogbench/scene"),
        ("puzzle-4x4-play-singletask-task4-v0.npz", "ogbench/puzzle-4x4-singletask-task4"),
        ("powderworld-easy-play-v0.npz", None),
        ("dppo/gym/walker2d-medium-v2/train.npz", "mujoco/walker2d-v4"),
        ("hopper-ppo-v5.npz", "mujoco/hopper-v5"),
        ("grasshopper-medium-v2.hdf5", None),
        ("set.npz", None),
    ],
)
def test_the_task_of_a_name(name, task):
    assert published.task_of(name) == task


def test_found_in_local_folders(here, offer, monkeypatch):
    offer(("http://127.0.0.1:9/hopper_medium-v2.hdf5", ""))
    places = ["data/d4rl/hopper-medium-v2.hdf5", "data/hopper_medium-v2.hdf5", "library/hopper_medium-v2.hdf5"]
    for place in places:
        dataset_file(here / place)
        assert published.locate(NAME).resolve() == here / place
        (here / place).unlink()
    monkeypatch.setenv("RHEOSTAT_DATA", str(here / "big"))
    dataset_file(here / "data/d4rl/hopper-medium-v2.hdf5")
    dataset_file(here / "big/d4rl/hopper-medium-v2.hdf5")
    assert published.locate(NAME) == here / "big/d4rl/hopper-medium-v2.hdf5"  # the first of the two


def test_a_minari_folder(here, offer):
    offer(("http://127.0.0.1:9/main_data.hdf5", ""), name="minari/mujoco/hopper/medium-v0")
    path = here / "data/minari/mujoco/hopper/medium-v0/data/main_data.hdf5"
    path.parent.mkdir(parents=True)
    foreign.minari(path)
    _, card = datasets.read("minari/mujoco/hopper/medium-v0")
    assert card["task"] == "mujoco/hopper-v5"
    assert card["source"]["file"] == str(path)


def test_downloaded_once_from_the_first_mirror_that_has_it(here, offer, served, capsys):
    folder, address = served
    sha256 = dataset_file(folder / "there.hdf5")
    offer((f"{address}/gone.hdf5", sha256), (f"{address}/there.hdf5", sha256))
    dataset, card = datasets.read(NAME)
    assert left(here) == ["data/d4rl/hopper-medium-v2.hdf5"]
    assert card["task"] == "mujoco/hopper-v4"
    assert len(dataset.row) == 8
    assert f"{address}/there.hdf5 -> data/d4rl/hopper-medium-v2.hdf5" in capsys.readouterr().out
    (folder / "there.hdf5").unlink()
    assert datasets.read(NAME)[1]["sha256"] == card["sha256"]  # without the mirror


def test_files_of_this_machine_can_be_mirrors(here, offer):
    sha256 = dataset_file(here / "mirror/hopper.hdf5")
    offer(((here / "mirror/hopper.hdf5").as_uri(), sha256))
    assert published.locate(NAME, quiet=True).read_bytes() == (here / "mirror/hopper.hdf5").read_bytes()


@pytest.mark.parametrize("kind", ["wrong hash", "cut off", "a web page", "nothing there"])
def test_what_is_not_the_dataset_is_never_taken_for_it(here, offer, served, kind):
    folder, address = served
    name = {"cut off": "cut.hdf5", "nothing there": "no.hdf5"}.get(kind, "file.hdf5")
    dataset_file(folder / "file.hdf5")
    if kind == "a web page":
        (folder / "file.hdf5").write_text("<html>sign in</html>")
    offer((f"{address}/{name}", "0" * 64 if kind == "wrong hash" else ""))
    with pytest.raises(DataError) as error:
        datasets.read(NAME)
    assert left(here) == []
    for part in (NAME, f"{address}/{name}", "data/d4rl/hopper-medium-v2.hdf5", name, "RHEOSTAT_DATA"):
        assert part in str(error.value)
    reason = {
        "wrong hash": "not the published 000000", "cut off": "ended after 1008 of 100000 bytes",
        "a web page": "a web page, not a dataset", "nothing there": "404",
    }  # fmt: skip
    assert reason[kind] in str(error.value)


def test_a_local_file_with_another_hash_is_refused_by_name_only(here, offer):
    path = here / "data/d4rl/hopper-medium-v2.hdf5"
    dataset_file(path)
    offer(("http://127.0.0.1:9/x.hdf5", "0" * 64))
    with pytest.raises(DataError, match=r"its SHA-256 is [0-9a-f]{64}, but that of d4rl/hopper-medium-v2 is 0000"):
        datasets.read(NAME)
    datasets.read(path)


def test_a_stop_leaves_nothing_behind(here, offer, served, monkeypatch):
    folder, address = served
    dataset_file(folder / "file.hdf5")
    offer((f"{address}/file.hdf5", ""))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(published.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        published.locate(NAME, quiet=True)
    assert left(here) == []


def test_names_that_do_not_exist(here):
    with pytest.raises(UnknownName, match="d4rl/hopper-medium-v2"):
        datasets.read("d4rl/hoper-medium-v2")
    with pytest.raises(DataError, match=r"its data are those of ogbench/cube-single-play-v0 with rewards"):
        datasets.read("ogbench/cube-single-play-singletask-task2-v0")
    for path in ("d4rl/hopper-medium-v2.hdf5", "elsewhere/hopper-medium-v2"):
        with pytest.raises(DataError, match=r"no such dataset\. Name another file, one that is published"):
            datasets.read(path)


def test_sets_that_only_a_browser_can_fetch_say_from_where(here):
    with pytest.raises(
        DataError, match=r"https://drive\.google\.com/.*\nPut its file at data/dppo/gym/hopper-medium-v2"
    ):
        datasets.read("dppo/gym/hopper-medium-v2")
    path = here / "data/dppo/gym/hopper-medium-v2/train.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **foreign.dppo())
    assert datasets.read("dppo/gym/hopper-medium-v2")[1]["task"] == "mujoco/hopper-v4"


@pytest.mark.parametrize("name", ["humanoid", "humanoidstandup", "pusher", "invertedpendulum", "hopper", "reacher"])
def test_bounds_of_actions_are_those_of_the_simulator(name):
    env = gymnasium.make(IDS[f"{name}-v5"])
    env.close()
    bounds, space = published.bounds_of(f"mujoco/{name}-v5"), env.action_space
    np.testing.assert_allclose(space.low, np.full(space.shape, bounds.low))
    np.testing.assert_allclose(space.high, np.full(space.shape, bounds.high))
