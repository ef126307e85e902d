"""What a node says, in its forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.report import told
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.statement import SHOWN, Statement, Table


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
    assert {name for name, _ in table.rows} == {*others, "more"} and all(why for _, why in table.rows)
    assert any("mask files are there and not used (1): a.mask.png" in warning for warning in said.warnings)
    assert any(warning.startswith("films are not trained on (1): film.MP4.") for warning in said.warnings)


def test_what_the_settings_leave_aside_is_in_the_table_with_all_its_names(tmp_path: Path) -> None:
    """Masks, captions and a table while they are off, a picture that cannot be read, and what belongs to it."""
    for number in range(6):
        noise_picture((64, 64), 30, number).save(tmp_path / f"{number}.png")
        noise_picture((64, 64), 30, number).save(tmp_path / f"{number}.mask.png")
        (tmp_path / f"{number}.txt").write_text("a fox")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a fox"}')
    (tmp_path / "5.png").write_bytes(b"no picture")

    def names(**values: Any) -> set[str]:
        own = Dataset(scan(tmp_path, SubsetConfig("input/set", 64, broken="leave out", **values)))
        (table,) = [table for table in told(own, own).tables if table.title == "not used"]
        assert all(why for _, why in table.rows) and len(set(table.rows)) == len(table.rows)
        return {name for name, _ in table.rows}

    masks, texts = {f"{n}.mask.png" for n in range(6)}, {f"{n}.txt" for n in range(6)}
    assert names(masks="files") == {"5.png", "5.mask.png", "5.txt"}
    assert names() == {"5.png", "5.txt", *masks}
    assert names(captions=False) == {"5.png", "metadata.jsonl", *masks, *texts}


def test_the_log_names_what_the_page_leaves_out() -> None:
    said = Statement((), tables=(Table("not used", ("file", "why"), tuple((f"{n}.mp4", "a film") for n in range(SHOWN + 5))),))
    assert f"| {SHOWN + 4}.mp4 |" in said.text()
    (text,), (parts,) = said.shown()["text"], said.shown()["told"]
    assert f"| {SHOWN + 4}.mp4 |" not in str(text) and "and 5 more" in str(text)
    assert len(parts["tables"][0]["rows"]) == SHOWN and parts["tables"][0]["more"] == 5  # type: ignore[index]
