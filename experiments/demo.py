"""`make demo`: a flow policy learned from noisy demonstrations of a Meta-World task, made better by ReinFlow.

Collects demonstrations on the real simulator, pre-trains a rectified flow on them, fine-tunes it online at four
denoising steps, and judges both on the same fresh episodes, with four steps and with one.  Everything lands in
runs/demo, which is made anew each time.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from core import runtime
from core.config import ConfigError
from core.metrics import write_json
from envs.collect import Recipe
from envs.render import RenderError
from envs.workers import cores
from experiments import parents, plots
from experiments.cli import guarded
from experiments.collect import collect
from experiments.evaluate import evaluate
from experiments.options import DataOptions, EvalOptions
from experiments.presets import preset
from experiments.statistics import wilson
from experiments.tables import tables
from experiments.train import train
from experiments.video import record

TASK = "metaworld/window-open"
RECIPE = Recipe(TASK, episodes=10, noise=1.3, seed=0)
UPDATES = 3_000  # of pre-training
STEPS, EPOCH = 96_000, 8_000  # environment steps of fine-tuning
FRESH = 100  # episodes of each judgement
START, END = (0.2, 0.6), 0.9  # the success that the pre-trained policy must have, and the fine-tuned one reach
OUT = Path("runs/demo")


def pretrained(data: Path, processes: int) -> Path:
    chosen = preset("chain_bc", TASK, "cpu")
    chosen = replace(
        chosen, config=replace(chosen.config, ema_start=UPDATES // 2),
        data=DataOptions(str(data)), env=replace(chosen.env, max_steps=150, workers=processes - 1),
        eval=EvalOptions(every=UPDATES, episodes=20, envs=20),
        steps=UPDATES, epoch=500, save_every=UPDATES, out=str(OUT), name="demo",
    )  # fmt: skip
    return train("chain_bc", TASK, chosen)


def tuned(start: Path, processes: int) -> Path:
    chosen = parents.defaults("reinflow", preset("reinflow", TASK, "cpu"), str(start))
    chosen = replace(
        chosen, env=replace(chosen.env, workers=processes - 1), parent=str(start), out=str(OUT), name="demo",
        steps=STEPS, epoch=EPOCH, save_every=STEPS, eval=EvalOptions(every=EPOCH, episodes=20, envs=20),
    )  # fmt: skip
    return train("reinflow", TASK, chosen)


def judged(folder: Path, steps: int) -> dict:
    """Success of a run on fresh episodes with so many denoising steps: mean and interval."""
    [row] = evaluate(folder, FRESH, envs=20, seed=2_000_000, denoising_steps=steps)
    mean = float(np.mean(row["successes"]))
    low, high = wilson(mean * FRESH, FRESH)
    return {"mean": mean, "low": low, "high": high, "episodes": FRESH}


def main() -> None:
    began = time.perf_counter()
    runtime.configure()
    processes = min(cores(), 8)
    shutil.rmtree(OUT, ignore_errors=True)
    data, scores = OUT / "demonstrations.npz", {}
    print("\n1. Demonstrations by the scripted expert, with noise on its actions", flush=True)
    collect(RECIPE, data, processes)
    print("\n2. A flow policy is fitted to them", flush=True)
    flow = pretrained(data, processes)
    print(f"\n3. Its success in {FRESH} fresh episodes, with 4 denoising steps and with 1", flush=True)
    scores["before"], scores["before_1_step"] = judged(flow, 4), judged(flow, 1)
    if not START[0] <= scores["before"]["mean"] <= START[1]:
        raise ConfigError(
            f"the pre-trained policy succeeds in {scores['before']['mean']:.0%} of episodes, outside {START[0]:.0%} to "
            f"{START[1]:.0%}: there is nothing to show from there; change RECIPE.noise"
        )
    print("\n4. ReinFlow fine-tunes it in the simulator", flush=True)
    reinflow = tuned(flow, processes)
    print("\n5. Its success in the same fresh episodes", flush=True)
    scores["after"], scores["after_1_step"] = judged(reinflow, 4), judged(reinflow, 1)
    labels = {
        "before": "flow policy, pre-trained", "before_1_step": "the same, 1 denoising step",
        "after": "fine-tuned by ReinFlow", "after_1_step": "the same, 1 denoising step",
    }  # fmt: skip
    lines = [
        f"| {TASK} | success | 95 % interval | episodes |", "| --- | --- | --- | --- |",
        *(f"| {labels[key]} | {s['mean']:.2f} | {s['low']:.2f} to {s['high']:.2f} | {s['episodes']} |"
          for key, s in scores.items()),
        "", f"{RECIPE.episodes} demonstrations, noise {RECIPE.noise:g} on the expert's actions; {UPDATES:,} updates; "
        f"{STEPS:,} environment steps.  Intervals: Wilson.",
    ]  # fmt: skip
    (OUT / "table.md").write_text("\n".join(lines) + "\n\n## During training\n\n" + tables([OUT], 2, "success", None))
    level = labels["before"], scores["before"]["mean"]
    plots.curve([reinflow], OUT / "curve.png", OUT / "curve.csv", "success", level)
    made = [OUT / "table.md", OUT / "curve.png", OUT / "summary.json"]
    try:
        record(reinflow, OUT / "clip.mp4")
        made.append(OUT / "clip.mp4")
    except RenderError as error:
        print(f"no clip: {error}")
    summary = {
        "task": TASK, "algo": "reinflow", "seeds": [0], "metric": "success rate",
        **{key: score["mean"] for key, score in scores.items()},
        "interval_95": {key: [score["low"], score["high"]] for key, score in scores.items()},
        "episodes": {key: score["episodes"] for key, score in scores.items()},
        "wall_s": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    write_json(OUT / "summary.json", summary)
    print("\n" + "\n".join(lines))
    print(f"\n{summary['wall_s']:.0f} s.  Look at: {'  '.join(map(str, made))}")
    if scores["after"]["mean"] < END:
        raise ConfigError(f"fine-tuning ended at {scores['after']['mean']:.0%}, below {END:.0%}")
    command = os.path.relpath(Path(sys.executable).with_name("rheostat"))
    print("Try next:")
    print(f"  {command} eval {reinflow} --denoising-steps 2")
    print(f"  {command} train reinflow {TASK} --from {flow} --preset cpu --steps 100000")
    print(f"  {command} list tasks")


if __name__ == "__main__":
    sys.exit(guarded("demo", main))
