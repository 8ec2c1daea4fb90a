"""`make demo`: from noisy scripted demonstrations of a Meta-World task to an agent that does better.

Collects the demonstrations on the real simulator, trains behaviour cloning and TD3+BC on them with four seeds each
side by side, and judges all on fresh episodes.  Everything lands in runs/demo, which is made anew each time.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np

import algos
from core import runtime
from core.config import ConfigError
from core.metrics import write_json
from envs.collect import Recipe
from envs.registry import Options
from envs.render import RenderError
from envs.workers import cores
from experiments import plots
from experiments.cli import guarded
from experiments.collect import collect
from experiments.evaluate import evaluate
from experiments.options import DataOptions, EvalOptions, Train
from experiments.statistics import bootstrap, wilson
from experiments.tables import tables
from experiments.train import train
from experiments.video import record

TASK = "metaworld/push"
RECIPE = Recipe(TASK, episodes=100, noise=0.7, seed=0)
SEEDS = (0, 1, 2, 3)
UPDATES, EPOCH, EVALUATIONS = 8_000, 1_000, 4
FRESH = 40  # episodes per seed in the final judgement
OUT = Path("runs/demo")


def judged(folder: Path) -> dict:
    """Success of a finished run on fresh episodes: mean and interval."""
    rows = evaluate(folder, FRESH, envs=10, seed=2_000_000)
    scores = np.array([row["successes"] for row in rows])
    low, high = bootstrap(scores)
    return {"mean": float(scores.mean()), "low": low, "high": high, "episodes": scores.size}


def run(algo: str, data: Path, processes: int) -> Path:
    every = UPDATES // EVALUATIONS
    chosen = Train(
        config=algos.load(algo).Config(),
        data=DataOptions(str(data)),
        # only success is asked for, so an episode may end there
        env=Options(end_at_success=True, workers=processes - 1),
        eval=EvalOptions(every=every, episodes=10, envs=5),
        seeds=SEEDS, steps=UPDATES, epoch=EPOCH, save_every=every, out=str(OUT), name="demo",
    )  # fmt: skip
    return train(algo, TASK, chosen)


def main() -> None:
    began = time.perf_counter()
    runtime.configure()
    processes = min(cores(), 8)
    shutil.rmtree(OUT, ignore_errors=True)
    data = OUT / "demonstrations.npz"
    print("\n1. Demonstrations by the scripted expert, with noise on its actions", flush=True)
    card = collect(RECIPE, data, processes)
    low, high = wilson(card["success"] * card["episodes"], card["episodes"])
    before = {"mean": card["success"], "low": low, "high": high, "episodes": card["episodes"]}
    if not 0.3 <= card["success"] <= 0.7:
        raise ConfigError(f"the demonstrations succeed in {card['success']:.0%}, outside 30 to 70 %: change the noise")
    print("\n2. Behaviour cloning on them", flush=True)
    bc = run("bc", data, processes)
    print("\n3. TD3+BC on them, with the same budget", flush=True)
    td3_bc = run("td3_bc", data, processes)
    print(f"\n4. Fresh episodes: {FRESH} for each of {len(SEEDS)} seeds", flush=True)
    labels = {"before": "demonstrations", "bc": "behaviour cloning", "after": "TD3+BC"}
    scores = {"before": before}
    for key, folder in (("bc", bc), ("after", td3_bc)):
        print(f"{labels[key]}:", flush=True)
        scores[key] = judged(folder)
    lines = [
        f"| {TASK} | success | 95 % interval | episodes |", "| --- | --- | --- | --- |",
        *(f"| {labels[key]} | {s['mean']:.3f} | {s['low']:.3f} to {s['high']:.3f} | {s['episodes']} |"
          for key, s in scores.items()),
        "", f"Noise on the expert's actions: {RECIPE.noise:g}.  Updates: {UPDATES:,}.  Interval of the demonstrations: "
        "Wilson; of the trained: bootstrap over seeds, then episodes.",
    ]  # fmt: skip
    (OUT / "table.md").write_text("\n".join(lines) + "\n\n## During training\n\n" + tables([OUT], 2, "success", None))
    level = labels["before"], before["mean"]
    plots.curve([td3_bc, bc], OUT / "curve.png", OUT / "curve.csv", "success", level)
    made = [OUT / "table.md", OUT / "curve.png", OUT / "summary.json"]
    try:
        record(td3_bc, OUT / "clip.mp4")
        made.append(OUT / "clip.mp4")
    except RenderError as error:
        print(f"no clip: {error}")
    summary = {
        "task": TASK, "algo": "td3_bc", "seeds": list(SEEDS), "metric": "success rate",
        **{key: score["mean"] for key, score in scores.items()},
        "interval_95": {key: [score["low"], score["high"]] for key, score in scores.items()},
        "episodes": {key: score["episodes"] for key, score in scores.items()},
        "wall_s": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    write_json(OUT / "summary.json", summary)
    print("\n" + "\n".join(lines))
    print(f"\n{summary['wall_s']:.0f} s.  Look at: {'  '.join(map(str, made))}")
    command = os.path.relpath(Path(sys.executable).with_name("rheostat"))
    print("Try next:")
    print(f"  {command} eval {td3_bc} --episodes 100")
    print(f"  {command} train td3_bc {TASK} --data.path {data} --help")
    print(f"  {command} list tasks")


if __name__ == "__main__":
    sys.exit(guarded("demo", main))
