"""JSON lines, atomic JSON, progress lines, sinks, configuration and streams."""

import json
from dataclasses import dataclass, field

import jax
import numpy as np
import pytest

from core import config, metrics
from core.rng import streams
from core.seeds import derive, slot_seeds


def test_lines_keep_rows_and_drop_what_a_resume_writes_again(tmp_path):
    lines = metrics.Lines(tmp_path / "m.jsonl")
    lines.write([{"step": s, "seed": 0, "x": np.float32(s), "bad": float("nan")} for s in (1, 2, 3)])
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 4, "x"')  # cut off by a kill
    assert [row["step"] for row in metrics.read_lines(tmp_path / "m.jsonl")] == [1, 2, 3]
    metrics.Lines(tmp_path / "m.jsonl", resume_at=2).write([{"step": 3, "seed": 0, "x": 9}])
    rows = metrics.read_lines(tmp_path / "m.jsonl")
    assert [(row["step"], row["x"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 9)]
    assert rows[0]["bad"] is None
    (tmp_path / "m.jsonl").write_text('{"step": 1, "seed": 0}\n[]\n')
    with pytest.raises(config.ConfigError, match="damaged in line 2"):
        metrics.read_lines(tmp_path / "m.jsonl")


def test_progress_says_lines_where_there_is_no_terminal(capsys):
    progress = metrics.Progress(100)
    progress.start_at(0)
    progress.advance(10)  # too soon after the start for a line
    progress.advance(20, "return 5.0")
    progress.advance(100, "return 5.0")
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "20/100 steps" in lines[0]
    assert "return 5.0" in lines[0]
    assert "100/100" in lines[1]


def test_a_sink_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(metrics.SINKS, "wandb", "no_such_module")
    with pytest.raises(config.ConfigError, match="EXTRAS=dev,wandb"):
        metrics.require_sink("wandb")


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = metrics.sink("tensorboard", tmp_path, "run")
    sink.write({"step": 1, "seed": 0, "return": 2.0, "failed": False})
    sink.close()
    assert list((tmp_path / "tensorboard" / "0").glob("events*"))


@dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    hidden: tuple[int, ...] = (1, 2)


def test_configurations_survive_json():
    value = Outer(Inner(5), (7,))
    assert config.from_dict(Outer, json.loads(json.dumps(config.to_dict(value)))) == value
    with pytest.raises(config.UnknownName, match="unknown option of Outer 'hiden'; nearest: hidden"):
        config.from_dict(Outer, {"hiden": [1]})


def test_fingerprints_ignore_order_only():
    assert config.fingerprint({"a": 1, "b": 2}) == config.fingerprint({"b": 2, "a": 1})
    assert config.fingerprint({"a": 1}) != config.fingerprint({"a": 2})


def test_streams_are_named_and_independent():
    a = streams(jax.random.key(0), "noise", "goal")
    b = streams(jax.random.key(0), "goal")
    assert (jax.random.key_data(a.goal) == jax.random.key_data(b.goal)).all()
    assert (jax.random.key_data(a.goal) != jax.random.key_data(a.noise)).any()
    with pytest.raises(ValueError, match="named twice"):
        streams(jax.random.key(0), "noise", "noise")


def test_derived_seeds_differ_along_the_path():
    seen = {derive(0), derive(1), derive(0, 0), derive(0, 1), derive(0, 0, 1), derive(0, 1, 0)}
    assert len(seen) == 6
    assert slot_seeds(4, 3) == [derive(4, i) for i in range(3)]
    assert slot_seeds([5, 6], 2) == [5, 6]
    with pytest.raises(ValueError, match="2 seeds for 3"):
        slot_seeds([5, 6], 3)
