"""Making datasets by playing: parallel, resumable, the same bits for any number of workers.

Who acts is a `Source`: a scripted expert, an oracle of OGBench, or policies, each with an equal share.  Episodes are
played in blocks, whose size the recipe alone determines, by worker processes, and written to OUT.parts as they finish;
the same command after a stop goes on with those that are missing.  The blocks are joined in order and cut behind the
episode that reaches the share.  Episode i of player p among n has the number i n + p.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.config import ConfigError, choose, require_finite
from core.locks import alone
from core.metrics import write_json
from core.types import EnvSpec
from envs import datasets, registry
from envs import policies as policy_files
from envs.players import Arrays, Expert, OraclePlayer, Player, Policy, Rollouts
from envs.registry import Options
from envs.workers import Pool

EXPERTS = Path(__file__).parent / "experts"  # ours, by their task: those that walk in mazes
BLOCK = 2_500  # transitions per file of a collection under way, about
SPREAD = 16  # blocks, at least, that a collection is cut into: so many workers have something to do
TOGETHER = {"mujoco": 16, "toy": 16}  # suite -> episodes that a policy plays side by side, where steps are cheap; else
FEW = 4
EPISODES = 100  # where no size is given


@dataclass(frozen=True)
class Recipe:
    """What a collection consists of.  Its length is given by `episodes` or by `transitions`, not by both."""

    task: str
    episodes: int = 0  # how many; 0: the published size, else 100
    noise: float | None = None  # std of Gaussian noise on actions, in units of the box; None: the oracle's own, else 0
    seed: int = 0
    max_steps: int = 0  # length of an oracle's episodes, or a shorter limit than the task's; 0 keeps those
    transitions: int = 0  # whole episodes until there are as many
    kind: str = ""  # which of OGBench's sets: navigate, stitch, explore, play, noisy


class Source(NamedTuple):
    """Who acts."""

    cards: list[dict[str, Any]]  # one for each who acts: what the dataset's card says, as JSON
    build: Callable[[], Player]  # picklable; called in each worker
    steps: int  # the longest episode
    together: int = 1  # episodes that are played side by side
    fixed: bool = False  # every episode is the longest


def check(recipe: Recipe) -> None:
    """Raises: ConfigError for numbers that make no dataset."""
    require_finite(recipe)
    for name in ("episodes", "transitions", "noise", "seed", "max_steps"):
        if (getattr(recipe, name) or 0) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(recipe, name)} is below zero")
    if recipe.episodes and recipe.transitions:
        raise ConfigError("give --episodes or --transitions, not both")


def _complete(recipe: Recipe, episodes: int, noise: float) -> Recipe:
    return replace(
        recipe,
        episodes=recipe.episodes or (0 if recipe.transitions else episodes),
        noise=noise if recipe.noise is None else recipe.noise,
    )


def scripted(recipe: Recipe) -> tuple[Recipe, Source]:
    """The recipe with its open places filled, and the task's own expert or oracle, or ours that walks in its maze.

    Raises: ConfigError for a task that has neither, or a kind of set that it does not have.
    """
    check(recipe)
    _refuse_dataset_name(recipe.task)
    family, name = registry.check(recipe.task)
    suite = registry.suite(family)
    if expert := walker(recipe.task):
        path = EXPERTS / f"{expert.rpartition('/')[2]}.npz"
        if not path.exists():
            raise ConfigError(
                f"the sets of {recipe.task} are walked by an expert of {expert}: train one (rheostat train sac "
                f"{expert}), then add --run RUN, or --policy FILE"
            )
        card = {"player": f"weights in {path.name}", "sha256": policy_files.digest(path)}
        return guided(recipe, functools.partial(policy_files.WeightsPolicy, path, "", expert), card)
    if hasattr(suite, "standards") and suite.standards(name):
        return _by_oracle(recipe)
    if not hasattr(suite, "expert"):
        raise ConfigError(
            f"{recipe.task} has no scripted expert and no oracle (Meta-World's tasks have, and OGBench's pointmaze, "
            "cube, scene and puzzle); play a policy instead: --run RUN or --policy FILE"
        )
    expert = functools.partial(Expert, suite.expert, name)
    return policies(recipe, [expert], [{"player": "scripted expert"}], together=1)


def walker(task: str) -> str:
    """The task whose expert walks in a maze of OGBench's, none for other tasks."""
    family, name = registry.check(task)
    suite = registry.suite(family)
    published = suite.standards(name) if hasattr(suite, "standards") else {}
    expert = next(iter(published.values())).expert if published else ""
    return expert and f"{family}/{expert}"


def guided(recipe: Recipe, expert: Callable[[EnvSpec], Policy], card: dict[str, Any]) -> tuple[Recipe, Source]:
    """The recipe with its open places filled, and OGBench's oracle of a maze with the expert that walks in it.

    Args: expert: picklable, `spec -> Policy` of the task `walker(recipe.task)`; card: what to say about it.
    Raises: ConfigError for a kind of set that the task does not have, or an expert that does not fit.
    """
    check(recipe)
    env = registry.make(walker(recipe.task), 1)
    env.close()
    expert(env.spec)
    return _by_oracle(recipe, card, expert=expert, spec=env.spec)


def _by_oracle(recipe: Recipe, card: dict[str, Any] | None = None, **expert: Any) -> tuple[Recipe, Source]:
    family, name = registry.check(recipe.task)
    published = registry.suite(family).standards(name)
    kind = recipe.kind or next(iter(published))
    standard = choose(f"kind of set on {recipe.task}", kind, published)
    steps = recipe.max_steps or standard.steps
    recipe = replace(_complete(recipe, standard.episodes, standard.noise), kind=kind, max_steps=steps)
    build = functools.partial(OraclePlayer, name, kind, recipe.noise, steps, recipe.seed, **expert)
    told = {"expert": card} if card else {}
    return recipe, Source([{"player": f"OGBench's oracle, {kind}", **told}], build, steps, fixed=True)


def policies(
    recipe: Recipe,
    makers: Sequence[Callable[[EnvSpec], Policy]],
    cards: Sequence[dict[str, Any]],
    options: Options | None = None,
    together: int = 0,
) -> tuple[Recipe, Source]:
    """The recipe with its open places filled, and policies as its source.

    Args: makers: picklable, `spec -> Policy`; cards: what to say about each; options: how they see the task;
        together: episodes that a policy plays side by side, 0: as suits the suite.
    Raises: ConfigError for what the task or a policy cannot have.
    """
    check(recipe)
    if recipe.kind:
        raise ConfigError("--kind is for OGBench's oracles (mazes, cube, scene, puzzle); leave it out here")
    options = options or Options()
    options = replace(options, max_steps=recipe.max_steps or options.max_steps)
    recipe = _complete(recipe, EPISODES, 0.0)
    family, _ = registry.check(recipe.task)
    trial = Rollouts(recipe.task, makers, 1, options, recipe.noise, recipe.seed)
    trial.close()
    makers[0](trial.spec)  # refuses a policy that does not fit the task
    together = together or TOGETHER.get(family, FEW)
    steps = trial.spec.max_steps
    slots = min(together, _block(recipe, steps, together))
    build = functools.partial(Rollouts, recipe.task, makers, slots, options, recipe.noise, recipe.seed)
    return recipe, Source(list(cards), build, steps, together)


def _refuse_dataset_name(task: str) -> None:
    """Raises: ConfigError for the name of one of OGBench's sets, with the command that makes it."""
    base, _, kind = task.removesuffix("-v0").rpartition("-")
    if kind in ("navigate", "stitch", "explore", "play", "noisy"):
        raise ConfigError(f"{task} is a dataset, not a task; to make it: rheostat collect {base} --kind {kind}")


class Worker:
    """What a process of a collection does."""

    def __init__(self, source: Source):
        # one thread for each process, in jax too, which reads this when it is first imported
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        os.environ["JAX_PLATFORMS"] = "cpu"
        self._player = source.build()

    def write(self, who: int, numbers: Sequence[int], path: Path) -> np.ndarray:
        """Play one block and write it atomically; returns the lengths of its episodes."""
        arrays = self._player.play(who, numbers)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(part, path)
        return arrays["length"]

    def close(self) -> None:
        self._player.close()


def collect(
    recipe: Recipe,
    source: Source,
    out: Path,
    workers: int,
    made: dict[str, Any],
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Play what is missing, join the blocks into `out`, and return its card.

    Args: recipe, source: as `scripted` or `policies` return them; workers: processes; made: goes on the card; report:
        called with the episodes done so far (transitions where `measure` says so).
    Raises: ConfigError when `out` exists, or when the blocks beside it belong to another recipe; WorkerError.
    """
    total = recipe.transitions or recipe.episodes
    if workers < 1 or out.suffix != ".npz":
        raise ConfigError(f"workers {workers} must be at least 1, and {out} must end in .npz")
    if total < len(source.cards):
        raise ConfigError(f"{len(source.cards)} policies cannot share {total}; ask for more")
    refuse_existing(out)
    parts = out.with_name(out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    with alone(parts):
        try:
            refuse_existing(out)  # another process may have been faster
        except ConfigError:
            shutil.rmtree(parts)
            raise
        note, text = parts / "recipe.json", {"recipe": asdict(recipe), "players": source.cards}
        if note.exists() and _read(note) != text:
            raise ConfigError(f"{parts} holds the beginning of another collection: delete it, or choose another --out")
        write_json(note, text)
        plan = Plan(recipe, source, parts)
        _play(source, plan, workers, report)
        arrays, shares = plan.join()
        players = [{**card, **share} for card, share in zip(source.cards, shares, strict=True)]
        card = datasets.write(out, arrays, {"task": recipe.task, **text, "players": players, **made})
        shutil.rmtree(parts)
    return card


def refuse_existing(out: Path) -> None:
    """Raises: ConfigError."""
    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out, or delete it to make it anew")


def measure(recipe: Recipe, source: Source) -> tuple[int, str]:
    """How much there is to do, and in which unit."""
    if recipe.transitions or source.fixed:
        return recipe.transitions or recipe.episodes * source.steps, "transitions"
    return recipe.episodes, "episodes"


def _play(source: Source, plan: Plan, workers: int, report: Callable[[int], None]) -> None:
    report(plan.done())
    if not (count := min(workers, len(plan.missing()))):
        return
    pool = Pool([functools.partial(Worker, source)] * count)
    try:
        while plan.missing():  # again, where the episodes under way at the end were shorter than expected
            for (*_, path), lengths in pool.each("write", plan.jobs()):
                plan.add(path, lengths)
                report(plan.done())
    finally:
        pool.close()


def _block(recipe: Recipe, steps: int, together: int) -> int:
    """Episodes of a block."""
    episodes = recipe.episodes or -(-recipe.transitions // steps)  # or more, if they are short
    return max(1, min(max(together, BLOCK // steps), -(-episodes // SPREAD)))


class Plan:
    """Which blocks a collection consists of, and which are there."""

    def __init__(self, recipe: Recipe, source: Source, parts: Path):
        self._parts, self._steps, self._unit = parts, source.steps, measure(recipe, source)[1]
        self._players, self._cut = len(source.cards), bool(recipe.transitions)
        total = recipe.transitions or recipe.episodes
        self._share = [total // self._players + (p < total % self._players) for p in range(self._players)]
        self.size = _block(recipe, source.steps, source.together)
        self.lengths: list[dict[int, np.ndarray]] = [{} for _ in range(self._players)]  # of the blocks that are there
        for path in sorted(parts.glob("*-*.npz")):
            if (lengths := _whole(path)) is not None:
                self.add(path, lengths)

    def add(self, path: Path, lengths: np.ndarray) -> None:
        """A block is there."""
        who, block = map(int, path.stem.split("-"))
        self.lengths[who][block] = lengths

    def path(self, who: int, block: int) -> Path:
        return self._parts / f"{who:04d}-{block:06d}.npz"

    def numbers(self, who: int, block: int) -> list[int]:
        """The numbers of a block's episodes."""
        begin, end = block * self.size, (block + 1) * self.size
        return [i * self._players + who for i in range(begin, end if self._cut else min(end, self._share[who]))]

    def jobs(self) -> Iterator[tuple[int, list[int], Path]]:
        """Arguments of `Worker.write` for the missing blocks, each by what is known when it is asked for."""
        begun: set[tuple[int, int]] = set()
        while waiting := [place for place in self.missing() if place not in begun]:
            begun.add(place := waiting[0])
            yield place[0], self.numbers(*place), self.path(*place)

    def missing(self) -> list[tuple[int, int]]:
        """The blocks to play: those of the first player first."""
        return [(who, block) for who in range(self._players) for block in self._missing(who)]

    def _missing(self, who: int) -> list[int]:
        there, share = self.lengths[who], self._share[who]
        if not self._cut:
            return [block for block in range(-(-share // self.size)) if block not in there]
        guess = np.mean([x.sum() for x in there.values()]) if there else self.size * self._steps
        expected, block, found = 0.0, 0, []
        while expected < share:
            expected += there[block].sum() if block in there else guess
            found += [] if block in there else [block]
            block += 1
        return found

    def kept(self, who: int) -> list[int]:
        """How many episodes of each block, from the first on, make up the share."""
        counts, total = [], 0
        while total < self._share[who]:
            lengths = self.lengths[who][len(counts)]
            reached = total + np.cumsum(lengths if self._cut else np.ones_like(lengths))
            counts.append(min(int(np.searchsorted(reached, self._share[who])) + 1, len(lengths)))
            total = int(reached[-1])
        return counts

    def done(self) -> int:
        """Episodes or transitions that need not be played again."""
        done = 0
        for share, there in zip(self._share, self.lengths, strict=True):
            steps, episodes = sum(int(x.sum()) for x in there.values()), sum(map(len, there.values()))
            done += min(steps, share) if self._cut else steps if self._unit == "transitions" else episodes
        return done

    def join(self) -> tuple[Arrays, list[dict[str, Any]]]:
        """The dataset, and what each player contributed.  Memory: the dataset and one block."""
        chosen = [(who, block, n) for who in range(self._players) for block, n in enumerate(self.kept(who))]
        steps = [int(self.lengths[who][block][:n].sum()) for who, block, n in chosen]
        episodes = sum(n for *_, n in chosen)
        arrays: Arrays = {}
        shares = [{"episodes": 0, "transitions": 0, "mean return": 0.0} for _ in range(self._players)]
        row = episode = 0
        for (who, block, n), size in zip(chosen, steps, strict=True):
            part = _load(self.path(who, block))
            for key in datasets.ARRAYS:
                begin, count, total = row, size + n, sum(steps) + episodes
                if key in ("length", "success"):
                    begin, count, total = episode, n, episodes
                if key not in arrays:
                    arrays[key] = np.empty((total, *part[key].shape[1:]), part[key].dtype)
                arrays[key][begin : begin + count] = part[key][:count]
            shares[who]["episodes"] += n
            shares[who]["transitions"] += size
            shares[who]["mean return"] += float(part["reward"][: size + n].sum(dtype=np.float64))
            row, episode = row + size + n, episode + n
        for share in shares:
            share["mean return"] /= share["episodes"]
        return arrays, shares


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_text())
    except ValueError:
        return None


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as block:
        return {key: block[key] for key in datasets.ARRAYS}


def _whole(path: Path) -> np.ndarray | None:
    """The lengths in a block; None for one that was damaged, which is played again."""
    try:
        return _load(path)["length"]
    except datasets.DAMAGED:
        return None
