"""Published datasets by name: where they lie, where they can be had, and which task they belong to.

`d4rl/hopper-medium-v2`, `minari/mujoco/hopper/medium-v0`, `ogbench/pointmaze-medium-navigate-v0` (and `-v0-val`),
`dppo/gym/hopper-medium-v2`.  `mirrors.csv` lists D4RL's 115 sets and the patterns of the others: a name (a regular
expression), the SHA-256 of its file where one is known (from the checksums of tensorflow/datasets), an address, and
for those that only a browser can fetch, a page.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import http.client
import os
import re
import urllib.request
from pathlib import Path
from typing import NamedTuple

from core.config import UnknownName
from core.dataset import DataError
from core.metrics import Progress
from envs.readers.files import open_file
from envs.readers.formats import SUFFIXES, recognise
from envs.readers.layout import UNIT, Bounds

FAMILIES = ("d4rl", "minari", "ogbench", "dppo")
# where the families' own libraries keep what they downloaded
LIBRARIES = {"d4rl": "~/.d4rl/datasets", "minari": "~/.minari/datasets", "ogbench": "~/.ogbench/data"}
TIMEOUT = 30  # seconds without a byte

_QUALITY = r"(?:random|medium|expert|full|replay|mixed)"
_ROBOT = (
    "ant|halfcheetah|hopper|humanoid|humanoidstandup|inverteddoublependulum|invertedpendulum|pusher|reacher|swimmer|"
    "walker2d"
)
# name or path, with "-" for "_" -> task; D4RL's v0 to v2 are gym's Hopper-v2, which v4 equals but for MuJoCo's version
TASKS = (
    (rf"mujoco/({_ROBOT})/[a-z]+-v0(?:/data/main-data)?$", r"mujoco/\1-v5"),
    (rf"(?:^|/)(ant|halfcheetah|hopper|walker2d)-{_QUALITY}(?:-{_QUALITY})?-v[012](?:/train)?$", r"mujoco/\1-v4"),
    (rf"(?:^|/)({_ROBOT})-[a-z0-9.-]+-(v[45])$", r"mujoco/\1-\2"),
    (r"(?:^|/)((?:visual-)?[a-z0-9]+(?:-[a-z0-9]+)?)-(?:navigate|stitch|explore|play|noisy)"
     r"(-singletask(?:-task\d)?)?(?:-v0)?(?:-val)?$", r"ogbench/\1\2"),
)  # fmt: skip
# D4RL name -> steps of an episode, for files without `timeouts`
LIMITS = (
    (r"(?:ant|halfcheetah|hopper|walker2d)-", 1000),
    (r"antmaze-umaze", 700), (r"antmaze-", 1000),
    (r"pen-", 100), (r"(?:hammer|door|relocate)-", 200), (r"kitchen-", 280),
    (r"maze2d-umaze", 300), (r"maze2d-medium", 600), (r"maze2d-large", 800),
)  # fmt: skip
# actions of these tasks are not in [-1, 1], but in [-x, x]
BOUNDS = {"humanoid": 0.4, "humanoidstandup": 0.4, "pusher": 2.0, "invertedpendulum": 3.0}


class Mirror(NamedTuple):
    sha256: str  # "" where none is known
    url: str  # "" where only a browser gets on
    page: str


def is_name(text: str) -> bool:
    """Whether it has the form of a published name."""
    return text.split("/")[0] in FAMILIES and "/" in text and not text.endswith(SUFFIXES)


@functools.cache
def table() -> tuple[tuple[str, Mirror], ...]:
    """(name or pattern, mirror) of `mirrors.csv`."""
    with (Path(__file__).parent / "mirrors.csv").open(newline="") as file:
        return tuple((row.pop("name"), Mirror(**row)) for row in csv.DictReader(file))


def mirrors(name: str) -> list[Mirror]:
    """Where a published dataset can be had, the first to be tried first.  Raises: UnknownName."""
    found = [(re.fullmatch(pattern, name), mirror) for pattern, mirror in table()]
    found = [mirror._replace(url=mirror.url.format(**match.groupdict())) for match, mirror in found if match]
    if not found or "singletask" in name:
        if "singletask" in name:
            raise DataError(
                f"{name}: OGBench publishes no file for a single task; its data are those of "
                f"{re.sub('-singletask(-task[0-9])?', '', name)} with rewards of the task"
            )
        raise UnknownName("published dataset", name, dict.fromkeys(pattern for pattern, _ in table()))
    return found


def folders() -> list[Path]:
    """Local data folders, in the order in which they are searched; downloads go to the first."""
    return [Path(p).expanduser() for p in (os.environ.get("RHEOSTAT_DATA"), "data") if p]


def locate(name: str, quiet: bool = False) -> Path:
    """The file of a published dataset: found in a local folder, else downloaded into the first of them.

    Raises: UnknownName; DataError saying which file to put where when it cannot be had, and for a file whose SHA-256
        is not the published one.
    """
    places = mirrors(name)
    files = {mirror.url.rsplit("/", 1)[-1] for mirror in places if mirror.url} - {"main_data.hdf5"}
    for path in _candidates(name, files):
        if path.is_file():
            wanted = places[0].sha256
            if wanted and (found := _sha256(path)) != wanted:
                raise DataError(
                    f"{path}: its SHA-256 is {found}, but that of {name} is {wanted}; delete it to download it anew, "
                    f"or use it as it is by its path instead of the name"
                )
            return path
    suffix = next((Path(mirror.url).suffix for mirror in places if mirror.url), ".npz")
    to, said = folders()[0] / f"{name}{suffix}", []
    for mirror in places:
        try:
            if not mirror.url:
                raise OSError("no direct address; a browser gets it from there")
            return _download(mirror, to, name, quiet)
        except (OSError, http.client.HTTPException, DataError) as error:
            said.append(f"  {mirror.url or mirror.page}: {error or type(error).__name__}")
    others = f" (or {' or '.join(sorted(files))} into {to.parent})" if files else ""
    raise DataError(
        f"{name} is not in {' or '.join(map(str, folders()))}, and could not be downloaded:\n" + "\n".join(said)
        + f"\nPut its file at {to}{others}; RHEOSTAT_DATA names another data folder"
    )  # fmt: skip


def _candidates(name: str, files: set[str]) -> list[Path]:
    family, _, rest = name.partition("/")
    found = []
    for folder in folders():
        found += [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        found += [folder / name / inside for inside in ("data/main_data.hdf5", "main_data.hdf5", "train.npz")]
        found += [place / file for place in (folder / family, folder) for file in sorted(files)]
    if family in LIBRARIES:
        library = Path(LIBRARIES[family]).expanduser()
        found += [library / file for file in sorted(files)] + [library / rest / "data/main_data.hdf5"]
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(mirror: Mirror, to: Path, name: str, quiet: bool) -> Path:
    """Stream into a file beside it, check it, and only then give it its name."""
    part = to.with_name(f"{to.name}.{os.getpid()}.part")
    request = urllib.request.Request(mirror.url, headers={"User-Agent": "rheostat"})
    digest, done = hashlib.sha256(), 0
    try:
        with contextlib.ExitStack() as stack:
            response = stack.enter_context(urllib.request.urlopen(request, timeout=TIMEOUT))
            to.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(part.open("wb"))
            size = int(response.headers.get("Content-Length") or 0)
            progress = Progress(size or 1, "bytes", quiet)
            progress.say(f"{name}: {mirror.url} -> {to}")
            progress.stage("loading")
            try:
                while piece := response.read(1 << 20):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    if size:
                        progress.advance(done)
            finally:
                progress.close()
            if size and done != size:
                raise OSError(f"ended after {done} of {size} bytes")
            file.flush()
            os.fsync(file.fileno())
        if mirror.sha256 and digest.hexdigest() != mirror.sha256:
            raise OSError(f"its SHA-256 is {digest.hexdigest()}, not the published {mirror.sha256}")
        with open_file(part) as file:
            recognise(file)
        os.replace(part, to)
    finally:
        part.unlink(missing_ok=True)
    return to


def _plain(name: str | Path) -> str:
    text = Path(name).as_posix()
    for suffix in SUFFIXES:
        text = text.removesuffix(suffix)
    return text.replace("_", "-").lower()


def task_of(name: str | Path) -> str | None:
    """The task that a name or a path says its data are from, where it follows a published pattern."""
    from envs import registry

    for pattern, task in TASKS:
        if match := re.search(pattern, _plain(name)):
            family, _, found = match.expand(task).partition("/")
            return f"{family}/{found}" if found in registry.suite(family).tasks() else None
    return None


def task_of_env(env: str) -> str | None:
    """The task of a Gymnasium id such as `Hopper-v5`, if it is one of ours."""
    from envs import registry

    name = env.lower()
    return f"mujoco/{name}" if name in registry.suite("mujoco").tasks() else None


def limit_of(name: str | Path) -> int | None:
    """Steps of an episode of the D4RL task that a name or a path says, or None."""
    stem = _plain(name).rsplit("/", 1)[-1]
    return next((limit for pattern, limit in LIMITS if re.match(pattern, stem)), None)


def bounds_of(task: str | None) -> Bounds:
    """Of a task's own actions, as D4RL, Minari and DPPO store them and policies from elsewhere give them."""
    family, _, name = (task or "").partition("/")
    bound = BOUNDS.get(name.rpartition("-")[0], 1.0) if family == "mujoco" else 1.0
    return Bounds(-bound, bound) if bound != 1 else UNIT
