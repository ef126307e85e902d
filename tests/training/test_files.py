"""How files are written: whole or not at all, and readable by whom the system's own rules say."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from lora_atelier.training import files
from safetensors.torch import save


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_lora_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        files.Serialised({"a": torch.ones(2)}).write(tmp_path / "lora.safetensors", {})
        files.write_text(tmp_path / "run.json", "{}")
        with files.replacing(tmp_path / "plain.bin") as temporary:
            temporary.write_bytes(b"as ever")
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        "lora.safetensors": mode,
        "run.json": mode,
        "plain.bin": mode,
    }


def test_what_fails_leaves_neither_a_file_nor_half_of_one(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("before")
    with pytest.raises(ValueError, match="no"), files.replacing(tmp_path / "kept.txt") as temporary:
        temporary.write_text("half")
        raise ValueError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "before"


TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.alpha": torch.tensor(4.0),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.zeros(0),
    "number": torch.arange(3),
}
ODD = "".join(map(chr, range(0x100))) + "\u2028\ud7ff 狐 😀 \\u0041 </script>"


def stated_in(file: bytes) -> dict[str, str]:
    """The metadata in the order in which they stand in the file."""
    return json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])["__metadata__"]


@pytest.mark.parametrize(
    "metadata", [{}, {"a": ""}, {"workflow": ODD}, {ODD: "x", "b": "1"}, {f"key {i}": "ä" * i for i in range(40)}]
)
def test_the_file_is_byte_for_byte_what_the_library_writes(tmp_path: Path, metadata: dict[str, str]) -> None:
    """The library's order of the metadata is another one each time, so ours are given in the order that it took."""
    expected = save(TENSORS, metadata)
    ordered = stated_in(expected)
    assert ordered == metadata
    serialised = files.Serialised(TENSORS)
    assert serialised.write(tmp_path / "lora.safetensors", ordered) == len(expected)
    assert (tmp_path / "lora.safetensors").read_bytes() == expected
    assert bytes(serialised.plain) == save(TENSORS) and expected.endswith(serialised.data)


def test_the_same_tensors_and_metadata_are_the_same_file(tmp_path: Path) -> None:
    metadata = {f"key {i}": str(i) for i in range(40)}
    for name in ("one", "other"):
        files.Serialised(TENSORS).write(tmp_path / name, metadata)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert list(stated_in((tmp_path / "one").read_bytes())) == list(metadata)


@pytest.mark.parametrize(("durable", "flushed"), [(True, 1), (False, 0)])
def test_what_can_be_made_again_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, flushed: int
) -> None:
    calls = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(number) or real(number))
    with files.replacing(tmp_path / "a", durable) as temporary:
        temporary.write_bytes(b"x")
    assert len(calls) == flushed and (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("way", ["replacing", "write_all"])
def test_a_file_that_is_read_just_then_is_waited_for_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    real, refused, path = os.replace, [], tmp_path / "run.json"
    path.write_bytes(b"old")

    def replace(start: Path, end: Path) -> None:
        if len(refused) < 3:
            refused.append(end)
            raise PermissionError(13, "in use", str(end))
        real(start, end)

    def write() -> None:
        if way == "write_all":
            files.write_all({path: b"new"}, lambda _: None)
        else:
            files.write_text(path, "new")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):  # other systems refuse for good
        write()
    assert path.read_bytes() == b"old"
    monkeypatch.setattr(files.os, "name", "nt")
    write()
    monkeypatch.undo()
    assert path.read_bytes() == b"new" and len(refused) == 3 and list(tmp_path.iterdir()) == [path]


def test_a_file_is_moved_once_nobody_reads_it_any_more_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused, start = os.rename, [], tmp_path / "a.png"
    start.write_bytes(b"x")

    def rename(one: Path, other: Path) -> None:
        if len(refused) < 3:
            refused.append(other)
            raise PermissionError(13, "in use", str(one))
        real(one, other)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PermissionError):
        files.move(start, tmp_path / "b.png")
    monkeypatch.setattr(files.os, "name", "nt")
    files.move(start, tmp_path / "b.png")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"] and len(refused) == 3


def test_the_longest_unused_go_until_the_rest_fits(tmp_path: Path) -> None:
    rows = []
    for i in range(5):
        (tmp_path / str(i)).write_bytes(b"x" * 10)
        rows.append((i, 10, tmp_path / str(i)))
    (tmp_path / "2").unlink()  # by somebody else meanwhile: no other goes in its place
    left = files.remove_longest_unused(reversed(rows), 25, lambda used, path: path.name == "0")
    assert left == 20 and sorted(path.name for path in tmp_path.iterdir()) == ["0", "4"]
    assert files.remove_longest_unused(rows[:1], 0, lambda used, path: used < 1) == 10


def test_free_room_is_told_also_for_a_folder_that_is_not_there_yet(tmp_path):
    here, there = files.room_on_disk(tmp_path), files.room_on_disk(tmp_path / "not" / "yet")
    assert here is not None and there is not None and abs(here - there) < 10**9
