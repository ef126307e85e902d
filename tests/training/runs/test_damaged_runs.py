"""Runs that anybody may have damaged or put there: a sentence, in bounded time, and never in the way of the others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests import fuzz
from lora_atelier.training.config import check_run_name
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs import reader
from lora_atelier.training.runs.run import Run

SAVED = {"file": "ink-000001.safetensors", "epoch": 1, "step": 3, "kind": "epoch"}
FACTS = {
    "identity": "x",
    "saved": [SAVED, {"file": "ink.safetensors", "epoch": 2, "step": 6, "kind": "last"}],
    "total": 6,
    "failed": "",
}
ROWS = [{"step": s, "epoch": 1, "loss": 1 / s, "rate": 1e-4} for s in range(1, 4)]
MEASURED = [{"step": 3, "epoch": 1, "held_out": 0.2, "training": 0.1}, {"step": 6, "epoch": 2, "held_out": None, "training": 0.1}]


def make_run(folder: Path, facts: object = FACTS) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "measured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MEASURED))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "ink")
    return tmp_path / "runs"


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10 * 2**30)


WRONG: dict[str, Callable[[Path], object]] = {
    "cut off": lambda p: p.write_text('{"identity": "x", "sav'),
    "nothing": lambda p: p.write_bytes(b""),
    "a list": lambda p: p.write_text("[]"),
    "brackets": lambda p: p.write_bytes(b"[" * fuzz.DEEP),
    "objects": lambda p: p.write_bytes(b'{"a":' * fuzz.DEEP),
    "deep but sound": lambda p: p.write_text(json.dumps({**FACTS, "x": fuzz.nested(500)})),
    "no UTF-8": lambda p: p.write_bytes(b'{"identity": "\xff\xfe"}'),
    "NaN": lambda p: p.write_text('{"saved": [], "total": NaN}'),
    "infinity": lambda p: p.write_text('{"saved": [], "total": 1e999}'),
    "a number without end": lambda p: p.write_text('{"saved": [], "total": ' + "9" * 5000 + "}"),
    "a large number": lambda p: p.write_text('{"saved": [], "total": ' + "9" * 400 + "}"),
    "a name twice": lambda p: p.write_text('{"saved": [], "total": 1, "total": 2}'),
    "a text": lambda p: p.write_text('{"saved": "abc"}'),
    "true": lambda p: p.write_text('{"saved": [], "total": true}'),
    "a row that is none": lambda p: p.write_text('{"saved": [3]}'),
    "an unknown kind": lambda p: p.write_text(json.dumps({"saved": [{**SAVED, "kind": "x"}]})),
    "no step": lambda p: p.write_text(json.dumps({"saved": [{**SAVED, "step": None}]})),
    "a way out": lambda p: p.write_text(json.dumps({"saved": [{**SAVED, "file": "../../victim.safetensors"}]})),
    "another ending": lambda p: p.write_text(json.dumps({"saved": [{**SAVED, "file": "victim.txt"}]})),
    "an absolute path": lambda p: p.write_text(json.dumps({"saved": [{**SAVED, "file": "/etc/passwd.safetensors"}]})),
    "ten gigabytes": sparse,
    "a folder": lambda p: p.mkdir(),
    "a pipe": os.mkfifo if hasattr(os, "mkfifo") else (lambda p: p.mkdir()),
    "a link to itself": lambda p: p.symlink_to(p.name),
    "a link to nothing": lambda p: p.symlink_to("nothing"),
    "a device": lambda p: p.symlink_to("/dev/zero"),
    "a link out": lambda p: (p.parents[2] / "foreign.json").write_text(json.dumps(FACTS)) and p.symlink_to("../../foreign.json"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_damaged_run_is_set_aside_with_its_reason(runs: Path, kind: str) -> None:
    other = make_run(runs / "ink-2")
    (other / "run.json").unlink()
    WRONG[kind](other / "run.json")
    assert reader.names(runs) == ["ink"]
    (name, why), *more = reader.set_aside(runs).items()
    assert (name, more) == ("ink-2", []) and why.startswith("run.json: ") and "Rename or delete the run's folder" in why
    assert reader.latest("ink", runs, []) == "ink", "the damaged one is newer, and in nobody's way"
    with pytest.raises(AtelierError, match="ink-2"):
        reader.state("ink-2", runs)
    shutil.rmtree(runs / "ink")
    with pytest.raises(AtelierError, match=r"ink-2: run\.json: "):
        reader.latest("ink", runs, [])


@pytest.mark.parametrize("file", ["history.jsonl", "measured.jsonl"])
@pytest.mark.parametrize("kind", ["ten gigabytes", "a folder", "a pipe", "a device", "a link out", "a link to itself"])
def test_a_history_that_is_none_is_told(runs: Path, file: str, kind: str) -> None:
    path = runs / "ink" / file
    path.unlink()
    WRONG[kind](path)
    with pytest.raises(AtelierError, match=f"ink: damaged, {file}: "):
        reader.state("ink", runs)
    assert reader.measured(runs / "ink") == ({} if file == "measured.jsonl" else {3: (0.2, 0.1), 6: (None, 0.1)})


def test_a_damaged_row_hides_no_other(runs: Path) -> None:
    sound = [json.dumps(row) for row in ROWS]
    odd = [
        "[" * fuzz.DEEP,
        "",
        "NaN",
        "3",
        "{",
        '{"step": true}',
        '{"step": 1e3}',
        '{"step": -1}',
        '{"step": ' + "9" * 5000 + "}",
        "\x00" * 200_000,
    ]
    values = [
        '{"step": 9, "loss": "x", "rate": [1], "epoch": {"a": 1}}',
        '{"step": 10, "loss": 1e308}',
        '{"step": 11, "loss": -1e999}',
    ]
    lines = [sound[0], *odd, sound[1], *odd, sound[2], *values]
    (runs / "ink" / "history.jsonl").write_text("\n".join(lines) + "\n")
    rows = reader.state("ink", runs)["rows"]
    assert [row["step"] for row in rows] == [1, 2, 3, 9, 10, 11]
    assert [row["loss"] for row in rows] == [1, 1 / 2, 1 / 3, None, None, None] and rows[3]["rate"] is None
    # The mean is that of the rows alone, however the file was read.
    assert [row["smooth"] for row in rows[:3]] == pytest.approx([1, 3 / 4, 11 / 18])
    json.dumps(rows, allow_nan=False)


def test_lines_longer_than_any_row_are_passed_over_in_pieces(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK", 64)
    monkeypatch.setattr(reader, "LONGEST", 128)
    path = runs / "ink" / "history.jsonl"
    path.write_text("x" * 10_000 + "\n" + json.dumps(ROWS[0]) + "\n" + "y" * 10_000)
    assert [row["step"] for row in reader.state("ink", runs)["rows"]] == [1]
    with open(path, "a") as file:
        file.write("y" * 1000 + "\n" + json.dumps(ROWS[1]) + "\n")
    assert [row["step"] for row in reader.state("ink", runs)["rows"]] == [1, 2]


ODD_NAMES = ["a\nb", "[a]", "-a", ".hidden", "con", "a.", " a", "a" * 255, "é" * 127, "\udcff", "a\\b", "*", "{name}"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_folders_of_odd_names_are_set_aside(runs: Path, name: str) -> None:
    """No run of ours is called so; those that some system cannot hold are not made here."""
    try:
        make_run(runs / name)
    except (OSError, ValueError):
        pytest.skip("this system has no such name")
    assert reader.names(runs) == ["ink"] and list(reader.set_aside(runs)) == [name]
    with pytest.raises(AtelierError):
        reader.state(name, runs)


def test_what_is_no_folder_is_no_run(runs: Path) -> None:
    (runs / "file").write_text("{}")
    (runs / "loop").symlink_to("loop")
    (runs / "empty").mkdir()
    (runs / "deep").symlink_to(runs / "ink" / "run.json")
    assert reader.names(runs) == ["ink"] and set(reader.set_aside(runs)) <= {"loop"}
    for name in ("file", "loop", "empty", "deep"):
        with pytest.raises(AtelierError, match="there is no run"):
            reader.state(name, runs)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_read_is_set_aside(runs: Path) -> None:
    other = make_run(runs / "ink-2")
    other.chmod(0)
    try:
        assert reader.names(runs) == ["ink"] and "ink-2" in reader.set_aside(runs)
    finally:
        other.chmod(0o700)


def test_a_link_to_a_run_elsewhere_is_set_aside(runs: Path) -> None:
    make_run(runs.parent / "elsewhere")
    (runs / "linked").symlink_to(runs.parent / "elsewhere")
    assert reader.names(runs) == ["ink"] and "leads out" in reader.set_aside(runs)["linked"]


def test_only_samples_that_lie_there_are_shown(runs: Path) -> None:
    folder = runs / "ink" / "samples"
    folder.mkdir()
    (folder / "ink-000001.png").write_bytes(b"")
    (runs.parent / "secret.png").write_bytes(b"")
    (folder / "ink-000002.png").symlink_to(runs.parent / "secret.png")
    (folder / "ink-000003.png").symlink_to("nothing")
    (folder / "ink-000004.png").mkdir()
    assert [sample["label"] for sample in reader.samples(runs / "ink")] == ["epoch 1"]
    shutil.move(folder, runs.parent / "samples")
    folder.symlink_to(runs.parent / "samples")
    assert reader.samples(runs / "ink") == []


@fuzz.fuzzed(300)
@given(fuzz.written(FACTS))
def test_any_run_file_gives_a_state_or_a_sentence(runs: Path, data: bytes) -> None:
    (runs / "ink" / "run.json").write_bytes(data)
    reader._why.cache_clear()  # two examples may be of one size and one moment
    damaged = reader.set_aside(runs)
    assert {*reader.names(runs), *damaged} == {"ink"}
    try:
        state: dict[str, Any] = reader.state("ink", runs)
    except AtelierError as error:
        assert "run.json" in str(error) and "ink" in damaged
        return
    assert not damaged
    json.dumps(state, allow_nan=False)
    loras = runs.parent / "loras"
    assert all((loras / row["file"]).resolve().parent == loras.resolve() for row in state["saved"])


@fuzz.fuzzed(300)
@given(fuzz.lines_of(ROWS), fuzz.lines_of(MEASURED))
def test_any_history_gives_finite_rows(runs: Path, history: bytes, measured: bytes) -> None:
    (runs / "ink" / "history.jsonl").write_bytes(history)
    (runs / "ink" / "measured.jsonl").write_bytes(measured)
    reader._tails.clear()  # a file that shrank in place is another test's
    state = reader.state("ink", runs)
    json.dumps(state, allow_nan=False)
    assert all(isinstance(row["step"], int) for row in state["rows"])
    for held_out, trained in reader.measured(runs / "ink").values():
        assert isinstance(trained, float) and (held_out is None or isinstance(held_out, (int, float)))


@fuzz.fuzzed(150)
@given(fuzz.NAMES, st.lists(fuzz.NAMES, max_size=3))
def test_any_name_gives_a_sentence(runs: Path, name: str, running: list[str]) -> None:
    for ask in (lambda: reader.state(name, runs), lambda: reader.latest(name, runs, running), lambda: check_run_name(name)):
        try:
            ask()
        except AtelierError as error:
            str(error).encode("ascii", "backslashreplace")


def test_a_name_fits_into_a_file_system(tmp_path: Path) -> None:
    """With all that comes behind it: a number, a step, the ending, and that of a file being written."""
    assert check_run_name("é" * 100) == "é" * 100 and check_run_name("字" * 66) == "字" * 66
    (tmp_path / ("字" * 66 + "-99-step99999999.safetensors.01234567.partial")).touch()
    with pytest.raises(AtelierError, match="too long for a file name"):
        check_run_name("字" * 67)


def test_the_panel_shows_no_run_of_another_recipe(tmp_path):
    """One called ``ink-2`` looks like the second run of ``ink``."""
    runs = tmp_path / "runs"
    for name in ("ink", "ink-2"):
        Run(name, runs, tmp_path / "loras").write(config={"name": name})
    assert reader.latest("ink", runs, []) == reader.latest("ink", runs, ["ink-2"]) == "ink"
    assert reader.latest("ink-2", runs, []) == "ink-2"
    Run("ink-3", runs, tmp_path / "loras").write(config={"name": "ink"})
    assert reader.latest("ink", runs, []) == "ink-3"


def test_the_panel_shows_the_trainings_of_a_sweep(tmp_path):
    runs = tmp_path / "runs"
    Run("ink", runs, tmp_path / "loras").write(config={"name": "ink"})
    Run("ink rank 8", runs, tmp_path / "loras").write(config={"name": "ink", "varied": "rank=8"})
    Run("ink wash", runs, tmp_path / "loras").write(config={"name": "ink wash", "varied": ""})
    assert reader.latest("ink", runs, []) == "ink rank 8"
    assert reader.latest("ink wash", runs, []) == "ink wash"
