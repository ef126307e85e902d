"""Drawn grids read back: what a page says, marks that stay, LoRA files that are kept, and names that reach nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid import gallery
from lora_atelier.training.grid.cells import png_info
from lora_atelier.training.grid.pages import KEY
from PIL import Image

CELL = "a" * 24 + ".png"
FACTS = {
    "prompt": "a fox", "seed": 3, "epochs": [{"file": "x.safetensors", "label": "epoch 1", "epoch": 1, "step": 9}],
    "strengths": [1.0, 0.5], "scores": {},
    "cells": {"0,0": {"file": f"cells/{CELL}"}, "1,0": {"failed": "out of memory"}, "1,1": {"file": "../../../secret.png"}},
}  # fmt: skip


def write_page(path: Path, facts: object = FACTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_info({KEY: json.dumps(facts)}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One run with one page in two parts, and what is none."""
    grids = tmp_path / "runs" / "foxes" / "grids"
    write_page(grids / "grid-0123456789ab-1.png")
    write_page(grids / "grid-0123456789ab-2.png")
    write_page(grids / "grid-ba9876543210.png", {"prompt": "half"})
    write_page(grids / "grid-222222222222.png", FACTS | {"cells": {"0,0": "no cell"}})
    Image.new("RGB", (8, 8)).save(grids / "grid-000000000000.png")
    (grids / "grid-111111111111.png").write_bytes(b"no picture")
    (grids / "cells").mkdir()
    Image.new("RGB", (8, 8)).save(grids / "cells" / CELL)
    (tmp_path / "runs" / "secret.png").write_bytes(b"")
    return tmp_path / "runs"


def test_pages_are_listed_once_and_only_those_that_say_what_they_are(runs: Path) -> None:
    sound, damaged = gallery.pages(runs)
    assert sound == [{"run": "foxes", "page": "grid-0123456789ab", "prompt": "a fox", "seed": 3}]
    assert {page["page"][5:7] for page in damaged} == {"ba", "22", "00", "11"}
    assert all("grid-" in page["why"] and page["run"] == "foxes" for page in damaged)


def test_a_page_names_the_cells_that_are_there(runs: Path) -> None:
    folder, facts = gallery.page(runs, "foxes", "grid-0123456789ab")
    assert folder == runs / "foxes" / "grids"
    assert facts["cells"] == {
        "0,0": {"cell": CELL, "favourite": False}, "1,0": {"failed": "out of memory"}, "1,1": {},
    }  # fmt: skip


def test_a_page_with_a_mean_or_a_file_of_unknown_epoch_opens(runs: Path) -> None:
    unknown = {"file": "x.safetensors", "label": "x", "epoch": None, "step": None}
    pages = {"333333333333": unknown, "444444444444": {**unknown, "mean": ["a", "b"]}}
    for page, column in pages.items():
        write_page(runs / "foxes" / "grids" / f"grid-{page}.png", FACTS | {"epochs": [column]})
        assert gallery.page(runs, "foxes", f"grid-{page}")[1]["epochs"] == [column]
    write_page(runs / "foxes" / "grids" / "grid-555555555555.png", FACTS | {"epochs": [{**unknown, "mean": [1]}]})
    with pytest.raises(AtelierError, match="page: "):
        gallery.page(runs, "foxes", "grid-555555555555")


def test_a_mark_stays_until_it_is_taken_away(runs: Path) -> None:
    for _ in range(2):
        gallery.mark(runs, "foxes", CELL, True)
    assert gallery.favourites(runs / "foxes" / "grids") == [CELL]
    assert gallery.page(runs, "foxes", "grid-0123456789ab")[1]["cells"]["0,0"]["favourite"]
    gallery.mark(runs, "foxes", CELL, False)
    assert not gallery.page(runs, "foxes", "grid-0123456789ab")[1]["cells"]["0,0"]["favourite"]


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1, null]", "[" * 100_000, '["x.png"]'])
def test_a_damaged_list_of_marks_is_an_empty_one_and_is_not_overwritten(runs: Path, text: str) -> None:
    path = runs / "foxes" / "grids" / gallery.FAVOURITES
    path.write_text(text)
    assert gallery.favourites(runs / "foxes" / "grids") == []
    assert not gallery.page(runs, "foxes", "grid-0123456789ab")[1]["cells"]["0,0"]["favourite"]
    with pytest.raises(AtelierError, match=r"favourites\.json: the list of favourites is damaged"):
        gallery.mark(runs, "foxes", CELL, True)
    assert path.read_text() == text


@pytest.mark.parametrize("run", ["..", "../runs/foxes", "", "nobody", "/", "foxes/../foxes"])
def test_only_runs_that_are_there(runs: Path, run: str) -> None:
    for work in (lambda: gallery.page(runs, run, "grid-0123456789ab"), lambda: gallery.mark(runs, run, CELL, True)):
        with pytest.raises(AtelierError, match="run: "):
            work()


@pytest.mark.parametrize(
    "name", ["../grids/grid-0123456789ab", "grid-0123456789ab.png", "grid-000000000000", "grid-ba9876543210", ""]
)
def test_only_pages_that_are_there(runs: Path, name: str) -> None:
    with pytest.raises(AtelierError, match="page: "):
        gallery.page(runs, "foxes", name)


@pytest.mark.parametrize("cell", [f"../cells/{CELL}", "b" * 24 + ".png", CELL[:-4], "", "../../../secret.png"])
def test_only_cells_that_are_there(runs: Path, cell: str) -> None:
    with pytest.raises(AtelierError, match="cell: "):
        gallery.mark(runs, "foxes", cell, True)


def test_a_lora_is_kept_under_a_name_of_ones_choice(tmp_path: Path) -> None:
    first, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"one")
    other.write_bytes(b"two")
    loras = tmp_path / "loras"
    kept = gallery.keep(first, " My fox.safetensors ", loras)
    assert kept == loras / "My fox.safetensors" and kept.read_bytes() == b"one"
    assert gallery.keep(first, "My fox", loras) == kept, "the same again is no mistake"
    with pytest.raises(AtelierError, match="name: My fox"):
        gallery.keep(other, "My fox", loras)
    assert kept.read_bytes() == b"one" and [path.name for path in loras.iterdir()] == [kept.name]


@pytest.mark.parametrize("name", ["../out", "a/b", "", "con", "x" * 200, "a\\b", ".."])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    lora = tmp_path / "a.safetensors"
    lora.write_bytes(b"one")
    with pytest.raises(AtelierError, match="name: "):
        gallery.keep(lora, name, tmp_path / "loras")


def test_before_the_first_run_there_is_nothing(tmp_path: Path) -> None:
    assert gallery.pages(tmp_path / "runs") == ([], [])
    with pytest.raises(AtelierError, match="there is no run called 'foxes'"):
        gallery.mark(tmp_path / "runs", "foxes", CELL, True)
