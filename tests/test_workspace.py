"""The layer rule, and the worked examples of WORKSPACE.md run as they stand."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "core": set(),
    "envs": {"core"},
    "algos": {"core"},
    "experiments": {"core", "envs", "algos"},
    "benchmarks": {"core", "envs", "algos", "experiments"},
}
FILES = [path for layer in ALLOWED for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    layer = path.relative_to(ROOT).parts[0]
    ours = imported(path) & (set(ALLOWED) | {"tests"})
    assert ours <= ALLOWED[layer] | {layer}, f"{layer} may import {ALLOWED[layer] or 'nothing of ours'}"


def test_core_names_no_algorithm_and_no_suite():
    """The core may not know its users."""
    import algos
    from envs.registry import SUITES

    names = re.compile(rf"[\"']({'|'.join([*algos.names(), *SUITES])})[\"'/]")
    for path in (ROOT / "core").rglob("*.py"):
        assert not names.search(path.read_text()), path


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "WORKSPACE.md").read_text(), re.S)


def test_examples_of_the_workspace_page_run(tmp_path):
    """All of them in one process, in the order of the page."""
    assert len(examples()) >= 3
    script = tmp_path / "examples.py"
    script.write_text("\n".join(examples()))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("layer", ALLOWED)
def test_the_map_lists_every_file(layer):
    """WORKSPACE.md tells the truth about the layout: each module is named, and no other."""
    page = (ROOT / "WORKSPACE.md").read_text()
    section = re.search(rf"^`{layer}/`.*?(?=^`|^## )", page, re.M | re.S)[0]
    named = re.findall(r"^- `([a-z_0-9]+(?:\.py|/))`", section, re.M)
    there = [p.name for p in (ROOT / layer).glob("*.py") if not p.name.startswith("__")]
    there += [f"{p.parent.name}/" for p in (ROOT / layer).glob("*/__init__.py")]
    assert sorted(named) == sorted(there)
