"""Runs on the disk as a list: their sizes by kind, and a deletion that takes what is the run's and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs import catalogue, preview
from lora_atelier.training.runs.owner import Owner
from lora_atelier.training.runs.run import Run
from lora_atelier.training.runs.state import State
from PIL.PngImagePlugin import PngInfo


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "runs", tmp_path / "loras"


def make(places: tuple[Path, Path], name: str = "ink", steps: int = 120) -> Run:
    """A finished run with two files, two states, a sample and a grid."""
    run = Run.begin(name, *places)
    run.write(total=steps, steps_per_epoch=steps // 2, family="SDXL", config={"name": name})
    run.append_history([{"step": s, "epoch": 1, "loss": 1.0 if s <= 70 else 0.5, "rate": 1e-4} for s in range(1, steps + 1)])
    tensors = {"a": torch.ones(1000)}
    for step, kind in ((steps // 2, "epoch"), (steps, "last")):
        run.save_state(State(step, tensors, {}, {}))
        run.save_lora(tensors, {}, epoch=step * 2 // steps, step=step, kind=kind)  # type: ignore[arg-type]
    info = PngInfo()
    info.add_text(preview.KEY, preview.MARK)
    sample = run.save_sample(noise_picture((32, 32), 40), "000001", 0, info)
    assert run.place_picture(sample, run.saved()[0].path)
    (run.folder / "grids" / "cells").mkdir(parents=True)
    for file in ("grid-0123456789ab.png", "grid-0123456789ac-2.png", "favourites.json", f"cells/{'0f' * 12}.png"):
        (run.folder / "grids" / file).write_bytes(b"x" * 500)
    return run


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_listed_with_its_place_and_its_sizes(places):
    run = make(places)
    (entry,) = catalogue.entries(*places)
    assert (entry["name"], entry["step"], entry["total"], entry["family"]) == ("ink", 120, 120, "SDXL")
    assert entry["finished"] and entry["state"] and entry["why"] == entry["failed"] == ""
    assert entry["loss"] == pytest.approx(0.5), "of the last 50 steps"
    assert entry["written"] == pytest.approx(os.stat(run.folder / "run.json").st_mtime, abs=1)
    stat = {path.relative_to(run.folder).as_posix(): path.stat().st_size for path in run.folder.rglob("*") if path.is_file()}
    for part in ("state", "samples", "grids"):
        assert entry["sizes"][part] == sum(size for name, size in stat.items() if name.startswith(f"{part}/")) > 0
    assert entry["sizes"]["rest"] == sum(size for name, size in stat.items() if "/" not in name)
    assert entry["sizes"]["loras"] == sum(path.stat().st_size for path in run.lora_folder.iterdir())
    assert [(file["file"], file["bytes"]) for file in entry["files"]] == [
        (saved.path.name, saved.path.stat().st_size) for saved in run.saved()
    ]


def test_the_loss_is_that_of_the_last_steps_of_a_long_history(places):
    run = make(places)
    run.append_history([{"step": s, "epoch": 2, "loss": float(s), "rate": 1e-4} for s in range(121, 5001)])
    (entry,) = catalogue.entries(*places)
    assert entry["step"] == 5000 and entry["loss"] == pytest.approx(sum(range(4951, 5001)) / 50)


def test_a_file_with_two_names_counts_once(places):
    run = make(places)
    before = sum(catalogue.sizes_in(run.folder).values())
    os.link(run.folder / "history.jsonl", run.folder / "state" / "again")
    assert sum(catalogue.sizes_in(run.folder).values()) == before


def test_a_run_is_walked_once(places, monkeypatch):
    make(places)
    walked, real = [], os.scandir

    def scandir(path):
        walked.append(Path(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    catalogue.entries(*places)
    below = [path for path in walked if path != places[0]]
    assert len(below) == len(set(below)) == 6, "the run's folder, its four, and that of the LoRA files"


@pytest.mark.parametrize("record", ["{", '{"saved": 7}', "[]"])
def test_a_damaged_run_is_listed_with_its_reason_and_can_be_deleted(places, record):
    run = make(places)
    make(places, "other")
    picture = preview.preview_of(run.saved()[0].path)
    (run.folder / "run.json").write_text(record)
    found = {entry["name"]: entry for entry in catalogue.entries(*places)}
    assert "run.json" in found["ink"]["why"] and found["ink"]["sizes"]["state"] > 0 and not found["other"]["why"]
    deleted = catalogue.delete("ink", *places, "all")
    assert deleted.left == [str(picture)] and not run.folder.exists(), "of whom the picture is, only the record tells"
    assert [entry["name"] for entry in catalogue.entries(*places)] == ["other"]


def test_only_the_state_goes(places):
    run = make(places)
    gone = sum(path.stat().st_size for path in (run.folder / "state").iterdir())
    before = files_below(run.folder)
    deleted = catalogue.delete("ink", *places, "state")
    assert deleted.bytes == pytest.approx(gone, abs=200) and deleted.left == []
    assert before - files_below(run.folder) == {"state/state.safetensors", "state/before.safetensors"}
    (entry,) = catalogue.entries(*places)
    assert not entry["state"] and entry["finished"] and entry["sizes"]["state"] == 0


def test_the_loras_stay_where_only_the_records_go(places):
    run = make(places)
    loras = files_below(run.lora_folder)
    catalogue.delete("ink", *places, "records")
    assert not run.folder.exists() and files_below(run.lora_folder) == loras and len(loras) == 3


def test_what_is_not_the_runs_stays_and_is_named(places):
    run = make(places)
    foreign = [run.folder / "notes.txt", run.lora_folder / "mine.safetensors", run.lora_folder / "ink.metadata.json"]
    within = [
        "state/mine.safetensors",
        "samples/ink-000001 (best).png",
        "samples/other-000001.png",
        "grids/page.png",
        "grids/cells/a.png",
    ]
    foreign += [run.folder / name for name in within]
    (run.folder / "samples" / "ink-000002.png").mkdir()
    for path in foreign:
        path.write_text("mine")
    picture = run.lora_folder / "ink.png"  # beside the last file, put there by a person
    noise_picture((8, 8), 40).save(picture)
    deleted = catalogue.delete("ink", *places, "all")
    assert sorted(deleted.left) == sorted(map(str, [*foreign, picture, run.folder / "samples" / "ink-000002.png"]))
    assert files_below(places[0]) | files_below(places[1]) == {
        "ink/notes.txt", "ink/mine.safetensors", "ink/ink.metadata.json", "ink/ink.png", *(f"ink/{name}" for name in within)
    }  # fmt: skip


def test_a_folder_in_a_files_place_stays_with_what_is_in_it(places):
    run = make(places)
    (run.folder / "measured.jsonl").mkdir()
    (run.folder / "measured.jsonl" / "mine").write_text("mine")
    assert catalogue.delete("ink", *places, "records").left == [str(run.folder / "measured.jsonl")]
    assert files_below(run.folder) == {"measured.jsonl/mine"}


def test_beside_the_state_lies_what_stays(places):
    run = make(places)
    mine = run.folder / "state" / "before the accident.safetensors"
    mine.write_text("mine")
    assert run.drop_state() > 0 and files_below(run.folder / "state") == {mine.name}
    run.save_state(State(3, {"a": torch.ones(2)}, {}, {}))
    assert catalogue.delete("ink", *places, "state").left == [str(mine)] and mine.exists()


def test_a_sample_that_a_person_has_chosen_as_the_picture_stays(places):
    run = make(places)
    (sample,) = (run.folder / "samples").iterdir()
    chosen = preview.preview_of(run.saved()[-1].path)
    chosen.write_bytes(sample.read_bytes())
    assert not run.place_picture(sample, run.saved()[-1].path)
    assert catalogue.delete("ink", *places, "all").left == [str(chosen)] and chosen.exists()


def test_a_file_that_is_written_anew_loses_the_picture_of_what_it_was(places):
    run = make(places)
    first, last = run.saved()
    run.save_lora({"a": torch.ones(3)}, {}, epoch=1, step=first.step, kind="epoch")
    assert preview.preview_of(first.path).exists()
    assert run.place_picture(preview.preview_of(first.path), last.path)
    run.save_lora({"a": torch.ones(3)}, {}, epoch=3, step=999, kind="last")
    assert last.path.exists() and not preview.preview_of(last.path).exists()


def test_a_file_that_another_program_holds_is_kept_with_its_row_until_the_next_save(places, monkeypatch):
    run = make(places)
    first, real = run.saved()[0].path, Path.unlink

    def held(path, *given, **named):
        if path == first:
            raise PermissionError(13, "in use", str(path))
        real(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", held)
        run.keep_last(0)
    assert first.exists() and first in [saved.path for saved in run.saved()]
    run.keep_last(0)
    assert not first.exists() and [saved.kind for saved in run.saved()] == ["last"]


def test_another_run_whose_name_begins_alike_stays(places):
    make(places)
    other = make(places, "ink-2")
    before = files_below(other.folder) | files_below(other.lora_folder)
    catalogue.delete("ink", *places, "all")
    assert files_below(other.folder) | files_below(other.lora_folder) == before


def test_nothing_behind_a_link_is_deleted(places, tmp_path):
    run = make(places)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    away = run.folder / "samples" / "away"
    away.symlink_to(outside, target_is_directory=True)
    assert catalogue.delete("ink", *places, "records").left == [str(away)]
    assert (outside / "precious").read_text() == "x"
    run = make(places, "moved")
    (run.folder / "samples").rename(outside / "samples")
    (run.folder / "samples").symlink_to(outside / "samples", target_is_directory=True)
    there = files_below(outside)
    assert catalogue.delete("moved", *places, "records").left == [str(run.folder / "samples")]
    assert files_below(outside) == there
    shutil.rmtree(outside / "samples")
    (places[0] / "led").symlink_to(outside, target_is_directory=True)
    (outside / "run.json").write_text(json.dumps({"saved": []}))
    with pytest.raises(AtelierError, match="this is a link"):
        catalogue.delete("led", *places, "all")
    assert files_below(outside) == {"precious", "run.json"}


def test_a_run_that_is_trained_stays_whole(places):
    run = make(places)
    before = files_below(run.folder) | files_below(run.lora_folder)
    owner = Owner(run.folder)
    owner.take()
    try:
        with pytest.raises(AtelierError, match="trained right now"):
            catalogue.delete("ink", *places, "all")
    finally:
        owner.release()
    assert before <= files_below(run.folder) | files_below(run.lora_folder)


@pytest.mark.parametrize("name", ["", ".", "..", "../loras", "nobody", "ink/samples", "a\0b"])
def test_what_is_no_run_is_refused(places, name):
    run = make(places)
    before = files_below(run.folder.parent) | files_below(run.lora_folder.parent)
    with pytest.raises(AtelierError, match="no run called"):
        catalogue.delete(name, *places, "all")
    assert files_below(run.folder.parent) | files_below(run.lora_folder.parent) == before


def test_a_deletion_that_the_system_refuses_is_told_and_can_be_repeated(places):
    if os.geteuid() == 0:
        pytest.skip("nothing is refused to root")
    run = make(places)
    (run.folder / "samples").chmod(0o500)
    try:
        with pytest.raises(AtelierError, match="could not be deleted"):
            catalogue.delete("ink", *places, "all")
        assert [entry["name"] for entry in catalogue.entries(*places)] == ["ink"], "it is still listed"
    finally:
        (run.folder / "samples").chmod(0o700)
    catalogue.delete("ink", *places, "all")
    assert catalogue.entries(*places) == []
