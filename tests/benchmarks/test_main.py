"""`python -m benchmarks`: the table that is printed is the one in the file."""

import json

from benchmarks import __main__ as program
from benchmarks import online
from benchmarks.contenders import PeerError, row


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["benchmarks", *words])
    return program.main(), capsys.readouterr()


def test_a_table_and_its_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(program, "HERE", tmp_path)
    asked, rows = [], [row("speed", 12.0, "steps/s", "a note")]
    monkeypatch.setattr(online, "measure", lambda *args: asked.append(args) or rows)
    code, said = run(monkeypatch, capsys, "online", "--rounds", "3", "--peers")
    out = tmp_path / "out" / "online.json"
    assert (code, asked) == (0, [(3, False, True)])
    assert "| speed | 12 | steps/s | a note |" in said.out
    assert said.out.endswith(f"{out}\n")
    written = json.loads(out.read_text())
    assert written["rows"] == rows
    assert written["machine"]["command"] == "python -m benchmarks online --rounds 3 --peers"
    assert run(monkeypatch, capsys, "online", "--json-out", str(tmp_path / "here.json"))[0] == 0
    assert json.loads((tmp_path / "here.json").read_text())["rows"] == rows


def test_a_failed_peer_is_told(monkeypatch, capsys):
    def fail(*args):
        raise PeerError("it ended")

    monkeypatch.setattr(online, "measure", fail)
    code, said = run(monkeypatch, capsys, "online")
    assert (code, said.err) == (1, "benchmarks: it ended\n")
