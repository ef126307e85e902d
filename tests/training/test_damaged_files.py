"""Whatever lies in a folder: read in bounded time, with nothing but an AtelierError for what is damaged."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests import fuzz
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training import files
from lora_atelier.training.captioning import list_captioners, model_type
from lora_atelier.training.captioning.tagger import read_tags
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.cache import TensorCache
from lora_atelier.training.dataset.caption_reader import CaptionReader
from lora_atelier.training.dataset.folders import folder_to_fill, list_folders, resolve_folder
from lora_atelier.training.dataset.images import alpha_of, check_picture, open_picture, picture_size
from lora_atelier.training.dataset.index import VERSION, Index, look_into
from lora_atelier.training.dataset.jsonl import read_jsonl
from lora_atelier.training.dataset.near_duplicates import LENGTH
from lora_atelier.training.dataset.png_text import png_text
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.files import Unreadable
from lora_atelier.training.grid import gallery
from lora_atelier.training.grid.cells import png_info
from lora_atelier.training.grid.files import as_runs, read_metadata
from lora_atelier.training.grid.pages import KEY
from lora_atelier.training.tensors.safetensors_header import read_header
from PIL import Image
from safetensors.torch import save

CELL = "a" * 24 + ".png"
PAGE: dict[str, Any] = {
    "prompt": "a fox", "epochs": [{"file": "x.safetensors", "label": "epoch 1", "epoch": 1, "step": 9}], "strengths": [0.5, 1.0],
    "text_strength": None, "negative": "", "sampler": "euler", "scheduler": "simple", "steps": 2, "cfg": 1.5, "width": 8,
    "height": 8, "seed": 3, "cells": {"0,0": {"file": f"cells/{CELL}"}, "1,0": {"failed": "out of memory"}},
    "scores": {"1,0": {"likeness": 0.5, "nearest": 0.6, "agreement": 0.7}}, "advice": {"epoch": "epoch 1", "reason": "it is."},
}  # fmt: skip
TENSORS = save({"a.weight": torch.zeros(2, 3), "b": torch.ones(4)}, {"ss_steps": "9", "ss_epoch": "2", "ss_tag_frequency": "{}"})
INDEXED = {"key": "a" * 64, "look": "b" * LENGTH, "width": 8, "height": 9, "focus": {"smartcrop 1x1": [0.5, 0.25]}}

SUBSET = SubsetConfig("input/odd")


# Reading itself


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no JSON"), (b"{", "no JSON"), (b"\xff", "no UTF-8"), (b"[" * fuzz.DEEP, "too deep"),
        (b"[" * 102 + b"]" * 102, "too deep"),
        (b'{"a":' * fuzz.DEEP, "too deep"), (b'{"a": 1, "a": 1}', "occurs twice"), (b"[NaN]", "no finite number"),
        (b"[1e999]", "no finite number"), (b"[-Infinity]", "no finite number"), (b"9" * 5000, "without end"),
    ],
)  # fmt: skip
def test_json_that_is_none_is_refused_with_the_reason(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        files.parse_json(data)
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(Unreadable, match=rf"a\.json: .*{why}"):
        files.read_json(tmp_path / "a.json", 10**6)


def test_sound_json_is_what_pythons_own_reader_says() -> None:
    text = json.dumps({"a": [1, -2.5, "é", None, True, {"b": 2**63}], "c": 1e300}).encode()
    assert files.parse_json(text) == files.parse_json(b"\xef\xbb\xbf" + text) == json.loads(text)
    assert files.parse_json(b"[" * 100 + b"]" * 100) == json.loads(b"[" * 100 + b"]" * 100)
    assert files.parse_json(b"[Infinity]", finite=False) == [float("inf")]


@fuzz.fuzzed(200)
@given(fuzz.written(PAGE))
def test_any_bytes_are_json_or_a_reason(data: bytes) -> None:
    try:
        json.dumps(files.parse_json(data), allow_nan=False)
    except ValueError as error:
        assert str(error)


def odd_files(folder: Path) -> list[Path]:
    """What is no plain file, and one of ten gigabytes."""
    found = [folder / name for name in ("folder.png", "loop.png", "device.png", "huge.png")]
    found[0].mkdir()
    found[1].symlink_to("loop.png")
    found[2].symlink_to("/dev/zero")
    with open(found[3], "wb") as file:
        file.truncate(10 * 2**30)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        found.append(folder / "pipe.png")
    return [*found, folder / ("x" * 300)]


def test_nothing_waits_for_a_pipe_or_reads_without_end(tmp_path: Path) -> None:
    for path in odd_files(tmp_path):
        for read in (
            lambda p: files.read_json(p, 1000), lambda p: files.read_limited(p, 1000), lambda p: png_text(p, KEY), check_picture,
            open_picture, picture_size, alpha_of, lambda p: read_jsonl(p, SUBSET), read_header,
            lambda p: Index().facts(p), lambda p: read_tags(p),
        ):  # fmt: skip
            with pytest.raises(AtelierError):
                read(path)
        for read in (CaptionReader(SUBSET).file, CaptionReader(SUBSET).caption, look_into):
            try:
                read(path)
            except (AtelierError, OSError, ValueError):
                continue
        assert read_metadata(path) == {} and not (files.is_file(path) and path.name != "huge.png")
    with pytest.raises(FileNotFoundError):
        files.read_limited(tmp_path / "gone", 1)
    with pytest.raises(Unreadable):
        files.read_limited(tmp_path / "a\0b", 1)


def test_inside_is_after_every_link(tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    (tmp_path / "root" / "in").symlink_to("a")
    (tmp_path / "root" / "loop").symlink_to("loop")
    inside = {
        name: files.is_inside(tmp_path / "root" / name, tmp_path / "root") for name in ("", "a", "out", "in", "a/..", "..", "a\0")
    }
    assert inside == {"": True, "a": True, "out": False, "in": True, "a/..": True, "..": False, "a\0": False}
    assert files.is_inside(tmp_path / "root" / "loop", tmp_path / "root") and not files.is_inside(
        tmp_path / "root2", tmp_path / "root"
    )


# LoRA files and the cache


@fuzz.fuzzed(300)
@given(fuzz.tensor_files(TENSORS))
def test_any_tensor_file_has_a_header_or_a_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x-000003.safetensors"
    path.write_bytes(data)
    try:
        header = read_header(path)
    except AtelierError as error:
        assert "x-000003.safetensors" in str(error)
    else:
        assert all(isinstance(text, str) for text in header.metadata.values())
        assert {name: tuple(tensor.shape) for name, tensor in header.tensors().items()} == {
            n: s for n, (_, s) in header.entries.items()
        }
    (run,) = as_runs([path.name], lambda name: tmp_path / name, read_metadata)
    assert all(isinstance(number, int) for saved in run.files for number in (saved.epoch, saved.step))
    try:
        files.read_tensors(path, "choose another")
    except AtelierError as error:
        assert "x-000003.safetensors" in str(error)


@fuzz.fuzzed(200)
@given(st.data())
def test_any_cache_file_gives_what_was_put_or_nothing(tmp_path: Path, data: st.DataObject) -> None:
    cache, key = TensorCache(tmp_path, 10**9), "c" * 32
    put = {"latent": torch.arange(6.0).reshape(2, 3)}
    cache.put(key, put)
    sound = cache.path(key).read_bytes()
    cache.path(key).write_bytes(data.draw(fuzz.damaged(sound)))
    found = cache.get(key)
    assert found is None or all(torch.equal(found[name], tensor) for name, tensor in put.items())
    assert found is not None or not cache.path(key).exists()
    cache.path(key).write_bytes(data.draw(fuzz.tensor_files(sound)))
    cache.get(key)  # somebody's own header with a checksum that fits is another matter


@pytest.mark.parametrize(
    "row", [{"data_offsets": "[0, 24]"}, {"data_offsets": [0, "24"]}, {"data_offsets": [0]}, {}, [], "x", None, 3]
)
def test_a_cache_file_whose_header_is_odd_counts_as_none(tmp_path: Path, row: object) -> None:
    cache, key = TensorCache(tmp_path, 10**9), "c" * 32
    header = json.dumps({"__metadata__": {"key": key, "crc32": "0"}, "latent": row}).encode()
    cache.path(key).parent.mkdir()
    cache.path(key).write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    assert cache.get(key) is None and not cache.path(key).exists()


def test_the_cache_is_not_kept_by_odd_files(tmp_path: Path) -> None:
    cache, key = TensorCache(tmp_path, 10**9), "c" * 32
    path = cache.path(key)
    path.parent.mkdir()
    for make in (lambda: path.write_bytes(b"") and path, lambda: os.truncate(path, 10 * 2**30), lambda: os.mkfifo(path)):
        path.unlink(missing_ok=True)
        path.touch()
        if make is not None:
            try:
                make()
            except FileExistsError:
                path.unlink()
                make()
        assert cache.get(key) is None and not path.exists()
    path.mkdir()
    assert cache.get(key) is None


@fuzz.fuzzed(300)
@given(fuzz.written({"version": VERSION, "pictures": {"/a.png": [10, 20, INDEXED], "/b.png": [10, 20, INDEXED]}}))
def test_any_index_gives_facts_that_can_be_used(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "index.json").write_bytes(data)
    index = Index(tmp_path / "index.json")
    for stamp, facts in index._stored.values():
        assert all(isinstance(number, int) for number in (*stamp, facts.width, facts.height)) and facts.width > 0 < facts.height
        assert len(facts.key) == 64 and len(facts.look) in (0, LENGTH)
        assert all(0 <= at <= 1 for point in facts.focus.values() for at in point)
    index.save()


def test_a_damaged_row_of_the_index_hides_no_other(tmp_path: Path) -> None:
    rows = {
        "/a.png": [10, 20, INDEXED],
        "/b.png": [10, 20, {**INDEXED, "width": "8"}],
        "/c.png": [10, 20, {**INDEXED, "focus": {"x": [2, 0]}}],
    }
    (tmp_path / "index.json").write_text(json.dumps({"version": VERSION, "pictures": rows}))
    assert list(Index(tmp_path / "index.json")._stored) == ["/a.png"]


# Grids


def page(facts: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=png_info({KEY: facts}))
    return buffer.getvalue()


PAGES = st.one_of(
    fuzz.written(PAGE).map(lambda data: page(data.decode("latin-1"))),
    fuzz.mutated(PAGE).map(lambda facts: page(json.dumps(facts))),
    fuzz.damaged(page(json.dumps(PAGE))), fuzz.ODD_FILES,
)  # fmt: skip


@fuzz.fuzzed(400)
@given(PAGES, fuzz.written([CELL]))
def test_any_page_is_shown_or_named(tmp_path: Path, data: bytes, favourites: bytes) -> None:
    grids = tmp_path / "runs" / "ink" / "grids"
    (grids / "cells").mkdir(parents=True, exist_ok=True)
    (grids / "cells" / CELL).write_bytes(b"")
    (grids / "grid-0123456789ab.png").write_bytes(data)
    (grids / gallery.FAVOURITES).write_bytes(favourites)
    sound, damaged = gallery.pages(tmp_path / "runs")
    assert len(sound) + len(damaged) == 1
    try:
        folder, facts = gallery.page(tmp_path / "runs", "ink", "grid-0123456789ab")
    except AtelierError as error:
        assert damaged and "grid-0123456789ab.png: " in str(error)
    else:
        assert folder == grids and sound[0] == {
            "run": "ink",
            "page": "grid-0123456789ab",
            "prompt": facts["prompt"],
            "seed": facts["seed"],
        }
        json.dumps(facts, allow_nan=False)
        # What the gallery's page does with them.
        for place, cell in facts["cells"].items():
            column, row = map(int, place.split(","))
            assert column == 0 or facts["epochs"][column - 1]["label"] + cell.get("failed", "")
            assert facts["strengths"][row] + 0.5 and cell.get("cell", CELL) == CELL
        assert all(score["likeness"] + score["nearest"] + score["agreement"] < 1e200 for score in facts["scores"].values())
        assert all(value is None or isinstance(value, str) for value in facts["advice"].values())
    try:
        gallery.mark(tmp_path / "runs", "ink", CELL, True)
        assert CELL in gallery.favourites(grids)
    except AtelierError:
        assert (grids / gallery.FAVOURITES).read_bytes() == favourites


def test_odd_pages_are_named_and_hide_no_other(tmp_path: Path) -> None:
    grids = tmp_path / "runs" / "ink" / "grids"
    grids.mkdir(parents=True)
    (grids / "grid-000000000000.png").write_bytes(page(json.dumps(PAGE)))
    (tmp_path / "foreign.png").write_bytes(page(json.dumps(PAGE)))
    (grids / "grid-111111111111.png").symlink_to(tmp_path / "foreign.png")
    (grids / "grid-222222222222.png").mkdir()
    (grids / "grid-333333333333.png").symlink_to("nothing")
    with open(grids / "grid-444444444444.png", "wb") as file:
        file.truncate(10 * 2**30)
    if hasattr(os, "mkfifo"):
        os.mkfifo(grids / "grid-555555555555.png")
    (tmp_path / "runs" / "file").write_bytes(b"")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path)
    (tmp_path / "runs" / "loop").symlink_to("loop")
    (tmp_path / "runs" / "out").mkdir()
    (tmp_path / "runs" / "out" / "grids").symlink_to(tmp_path)
    sound, damaged = gallery.pages(tmp_path / "runs")
    assert [one["page"][5] for one in sound] == ["0"]
    assert {one["page"][5] for one in damaged} == set("1234") | ({"5"} if hasattr(os, "mkfifo") else set())
    for run in ("file", "linked", "loop", "out", "x" * 5000, "a\0", "\udcff"):
        with pytest.raises(AtelierError):
            gallery.page(tmp_path / "runs", run, "grid-000000000000")
        with pytest.raises(AtelierError):
            gallery.mark(tmp_path / "runs", run, CELL, True)


# Pictures, captions, captioners, folders


def picture_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise_picture((24, 16), 40).save(buffer, kind, exif=Image.Exif().tobytes())
    return buffer.getvalue()


@fuzz.fuzzed(150)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]).flatmap(lambda kind: fuzz.damaged(picture_bytes(kind))))
def test_any_picture_is_opened_or_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for read in (check_picture, open_picture, picture_size, alpha_of, look_into, lambda p: png_text(p, KEY)):
        try:
            read(path)
        except AtelierError as error:
            assert "a.png" in str(error)


@fuzz.fuzzed(150)
@given(
    fuzz.damaged(b'tag_id,name,category,count\n0,a cat,0,5\n1,"b\nc",4,5\n') | fuzz.ODD_FILES,
    fuzz.written({"model_type": "blip"}),
)
def test_any_captioners_files_are_read_or_named(tmp_path: Path, tags: bytes, config: bytes) -> None:
    folder = tmp_path / "models" / "wd"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "selected_tags.csv").write_bytes(tags)
    (folder / "config.json").write_bytes(config)
    assert "wd" in list_captioners(tmp_path / "models")
    try:
        assert all("\n" not in name and isinstance(kind, int) for name, kind in read_tags(folder / "selected_tags.csv"))
    except AtelierError as error:
        assert "selected_tags.csv" in str(error)
    try:
        assert isinstance(model_type(folder), str)
    except AtelierError as error:
        assert "config.json" in str(error)


@fuzz.fuzzed(150)
@given(
    fuzz.damaged(b"a cat, \xe7\x8c\xab\n"),
    fuzz.lines_of([{"file_name": "a.png", "text": "a cat"}, {"file_name": "b.png", "text": None}]),
)
def test_any_caption_file_is_read_or_named(tmp_path: Path, caption: bytes, table: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(caption)
    (tmp_path / "t.jsonl").write_bytes(table)
    for read, path in (
        (CaptionReader(SUBSET).caption, tmp_path / "a.txt"),
        (lambda p: read_jsonl(p, SUBSET), tmp_path / "t.jsonl"),
    ):
        try:
            read(path)
        except AtelierError as error:
            assert path.name in str(error)


@fuzz.fuzzed(150)
@given(fuzz.NAMES)
def test_any_folders_name_gives_a_folder_inside_or_a_sentence(tmp_path: Path, name: str) -> None:
    root = tmp_path / "input"
    root.mkdir(exist_ok=True)
    for text in (name, f"input/{name}"):
        try:
            assert resolve_folder(text, {"input": root}).resolve().is_relative_to(root.resolve())
        except AtelierError as error:
            assert str(error).startswith("folder: ")
        try:
            assert folder_to_fill(text, {"input": root})[1].resolve().is_relative_to(root.resolve())
        except AtelierError as error:
            assert str(error).startswith("folder: ")


def test_links_that_lead_to_themselves_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert list_folders({"input": tmp_path}) == []
    with pytest.raises(AtelierError, match="does not exist here"):
        resolve_folder("input/loop", {"input": tmp_path})
