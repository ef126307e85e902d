"""How files are written: whole or not at all, and readable by whom the system's own rules say."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from lora_atelier.training import files


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_lora_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        files.write_tensors(tmp_path / "lora.safetensors", {"a": torch.ones(2)}, {})
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
