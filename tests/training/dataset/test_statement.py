"""What a node says, in its forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.report import told
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.statement import Statement, Table


def test_the_text_is_in_lines_and_the_tables_in_markdown() -> None:
    said = Statement(
        ("2 pictures",), ("one is soft.",), ("also there: a film.",), (Table("buckets", ("size", "x|y"), (("1", ""),), 3),)
    )
    lines = [
        "2 pictures",
        "Note: one is soft.",
        "Note: also there: a film.",
        "",
        "| size | x\\|y |",
        "| --- | --- |",
        "| 1 | (empty) |",
    ]
    assert said.text().splitlines() == [*lines, "and 3 more"]
    (parts,) = json.loads(json.dumps(said.shown()))["told"]
    assert parts["warnings"] == ["one is soft."] and parts["tables"][0]["rows"] == [["1", ""]]


@pytest.mark.parametrize(("rows", "most", "kept", "more"), [(5, 3, 3, 2), (3, 3, 3, 0), (0, 3, 0, 0)])
def test_what_a_table_leaves_out_is_counted(rows: int, most: int, kept: int, more: int) -> None:
    table = Table.cut("t", ("n",), [(str(i),) for i in range(rows)], most)
    assert (len(table.rows), table.more) == (kept, more)


def test_every_file_of_a_phones_folder_is_used_or_in_the_table(tmp_path: Path) -> None:
    """Two pictures that cannot be read, a TIFF, a film, a JPEG, and what lies around such files."""
    used = {"a.jpg", "b.TIFF"}
    for name in used:
        noise_picture((64, 64), 30, 1).save(tmp_path / name)
    others = {"1.jxl", "2.JXL", "film.MP4", "film.txt", "lost.txt", "raw.cr2", "a.mask.png", "x.docx", ".hidden", "Thumbs.db"}
    for name in others - {"a.mask.png"}:
        (tmp_path / name).write_bytes(b"-")
    noise_picture((64, 64), 30, 2).save(tmp_path / "a.mask.png")
    (tmp_path / "more").mkdir()
    noise_picture((64, 64), 30, 3).save(tmp_path / "more" / "c.png")
    own = Dataset(scan(tmp_path, SubsetConfig("input/phone", 64)))
    said = told(own, own)
    assert {sample.path.name for sample in own.samples} == used
    (table,) = [table for table in said.tables if table.title == "not used"]
    assert {name for name, _ in table.rows} == {*others - {"a.mask.png"}, "more"} and all(why for _, why in table.rows)
    assert any("mask files are there and not used (1): a.mask.png" in warning for warning in said.warnings)
    assert any(warning.startswith("films are not trained on (1): film.MP4.") for warning in said.warnings)
