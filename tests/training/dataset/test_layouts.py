"""Nested folders, captions in .jsonl files, broken pictures that are left out, and the memory of earlier sessions."""

from __future__ import annotations

import json

import pytest
from lora_atelier.tests.training.dataset.test_images import huge_png
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import index
from lora_atelier.training.dataset.report import inspect, remarks
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, refresh_captions, scan
from lora_atelier.training.errors import AtelierError
from PIL import Image


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), colour).save(path)
    return path


def config(**values):
    return SubsetConfig("input/set", **values)


def table(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def test_nested_folders_belong_to_the_folder_around_them(tmp_path):
    for name in ("1.png", "b/2.png", "b/deep/3.png", "5_cat/4.png", "5_cat/more/5.png", "masks/1.png"):
        picture(tmp_path / name)
    own, cat = scan(tmp_path, config(nested=True))
    assert [s.path.name for s in own.samples] == ["1.png", "2.png", "3.png"] and own.warnings == (
        "mask files are there and not used (1): masks/1.png. Set masks to files to use them.",
    )
    assert [s.path.name for s in cat.samples] == ["4.png", "5.png"] and (cat.repeats, cat.class_caption) == (5, "cat")
    flat = scan(tmp_path, config())
    assert [len(s.samples) for s in flat] == [1, 1] and any("Switch nested on" in text for text in flat[0].warnings)


def test_nested_folders_alone_are_a_dataset(tmp_path):
    picture(tmp_path / "a" / "1.png")
    assert len(scan(tmp_path, config(nested=True))[0].samples) == 1
    with pytest.raises(AtelierError, match=r"Sub-folders without a number in front .*: a\. Switch nested on"):
        scan(tmp_path, config())


def test_a_loop_of_links_ends(tmp_path):
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(scan(tmp_path, config(nested=True))[0].samples) == 1


def test_captions_in_a_table(tmp_path):
    for name in ("1.png", "2.png", "3.png", "sub/4.png"):
        picture(tmp_path / name)
    (tmp_path / "2.txt").write_text("from its own file")
    table(
        tmp_path, {"file_name": "1.png", "text": "one"}, {"file_name": "2.png", "text": "two"},
        {"file_name": "sub/4.png", "caption": "four"}, {"file_name": "gone.png", "text": "x"},
        {"file_name": "3.png", "text": None},
    )  # fmt: skip
    (subset,) = scan(tmp_path, config(nested=True))
    assert [s.caption for s in subset.samples] == ["one", "from its own file", None, "four"]
    assert "metadata.jsonl has captions of pictures that are not in the folder: gone.png." in subset.warnings
    assert [s.caption for s in refresh_captions(Dataset((subset,))).samples] == ["one", "from its own file", None, "four"]


@pytest.mark.parametrize(
    ("encoding", "declared", "note"),
    [("utf-8-sig", "detect", []), ("utf-16", "detect", ["m.jsonl is in UTF-16."]),
     ("utf-16-le", "detect", ["m.jsonl is in UTF-16-LE."]), ("cp1252", "windows-1252", ["m.jsonl is in WINDOWS-1252."])],
)  # fmt: skip
def test_a_table_in_another_encoding_is_read_and_reported(tmp_path, encoding, declared, note):
    picture(tmp_path / "1.png")
    (tmp_path / "m.jsonl").write_bytes('{"file_name": "1.png", "text": "café"}\n'.encode(encoding))
    (subset,) = scan(tmp_path, config(caption_encoding=declared))
    assert subset.samples[0].caption == "café"
    assert [text for text in subset.warnings if "m.jsonl" in text] == note


def test_a_table_whose_encoding_nobody_can_tell_is_asked_about(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "m.jsonl").write_bytes('{"file_name": "1.png", "text": "café"}\n'.encode("cp1252"))
    with pytest.raises(AtelierError, match=r"m\.jsonl: this file is not UTF-8.*Set caption_encoding"):
        scan(tmp_path, config())


def test_a_table_that_is_guessed_says_so(tmp_path):
    picture(tmp_path / "1.png")
    row = json.dumps({"file_name": "1.png", "text": "рыжая кошка сидит на красном диване"}, ensure_ascii=False)
    (tmp_path / "m.jsonl").write_bytes(f"{row}\n".encode("koi8_r"))
    (subset,) = scan(tmp_path, config())
    assert subset.samples[0].caption == "рыжая кошка сидит на красном диване"
    assert any("m.jsonl was read as KOI8-R, a guess by its letters" in text for text in subset.warnings)


def test_one_picture_in_several_lines_and_a_name_in_another_form(tmp_path):
    picture(tmp_path / "caf\u00e9.png")
    table(tmp_path, {"file_name": "cafe\u0301.png", "text": "first"}, {"file_name": "cafe\u0301.png", "text": "second"})
    (subset,) = scan(tmp_path, config())
    assert subset.samples[0].caption == "second"
    assert any("several captions of one picture, of which the last counts" in text for text in subset.warnings)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"text": "a"}',
        '{"file_name": "1.png"}',
        '{"file_name": 1, "text": "a"}',
        "[" * 9999,
        "\x01\ufffe",
        r'{"file_name": "1.png", "text": "\ud800"}',
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    picture(tmp_path / "1.png")
    (tmp_path / "m.jsonl").write_text('{"file_name": "1.png", "text": "a"}\n\n' + line)
    with pytest.raises(AtelierError, match=r"m\.jsonl: line 3 is not of the form"):
        scan(tmp_path, config())


def test_lines_about_something_else_are_no_table_and_it_is_said(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (subset,) = scan(tmp_path, config())
    assert subset.samples[0].caption is None and "log.jsonl holds no captions" in "\n".join(subset.warnings)
    (tmp_path / "m.jsonl").write_text('{"file_name": "1.png", "text": "a"}')
    assert scan(tmp_path, config())[0].samples[0].caption == "a"


def test_a_table_cannot_reach_out_of_the_folder(tmp_path):
    folder = tmp_path / "set"
    picture(folder / "1.png")
    picture(tmp_path / "secret.png")
    table(folder, {"file_name": "../secret.png", "text": "a"}, {"file_name": "/etc/passwd", "text": "b"})
    (subset,) = scan(folder, config())
    assert [s.path.name for s in subset.samples] == ["1.png"] and subset.samples[0].caption is None


def test_a_table_linked_from_elsewhere_is_named(tmp_path):
    picture(tmp_path / "set" / "1.png")
    (tmp_path / "secret.jsonl").write_text('{"file_name": "1.png", "text": "a secret"}')
    (tmp_path / "set" / "m.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(AtelierError, match=r"m\.jsonl: this is a link that leads out of"):
        scan(tmp_path / "set", config())


def test_a_changed_table_changes_the_stamp(tmp_path):
    picture(tmp_path / "1.png")
    before = folder_stamp(tmp_path)
    table(tmp_path, {"file_name": "1.png", "text": "one"})
    assert folder_stamp(tmp_path) != before


def test_captions_off_and_a_class_caption_of_the_node(tmp_path):
    picture(tmp_path / "3_cat" / "1.png")
    (tmp_path / "3_cat" / "1.txt").write_text("a cat")

    def first(**values):
        return refresh_captions(Dataset(scan(tmp_path, config(**values)))).subsets[0].samples[0].caption

    assert (first(), first(captions=False), first(captions=False, class_caption="animal")) == ("a cat", "cat", "animal")
    picture(tmp_path / "3_cat" / "0.png")
    assert first(class_caption="animal") == "animal"


def test_broken_pictures_stop_or_are_left_out_by_name(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(AtelierError, match=r"2\.png"):
        scan(tmp_path, config())
    (subset,) = scan(tmp_path, config(broken="leave out"))
    assert [s.path.name for s in subset.samples] == ["1.png"]
    assert len(subset.warnings) == 1 and subset.warnings[0].startswith("left out: ") and "2.png" in subset.warnings[0]
    (tmp_path / "1.png").unlink()
    with pytest.raises(AtelierError, match=r"2\.png"):
        scan(tmp_path, config(broken="leave out"))


def test_a_picture_that_is_too_large_stops_or_is_left_out_by_name(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "bomb.png").write_bytes(huge_png(60_000))
    with pytest.raises(AtelierError, match=r"bomb\.png: this picture has more than 178 million pixels"):
        scan(tmp_path, config())
    (subset,) = scan(tmp_path, config(broken="leave out"))
    assert [s.path.name for s in subset.samples] == ["1.png"] and "bomb.png" in subset.warnings[0]


@pytest.mark.parametrize(("content", "message"), [(b"a" * (1 << 20) + b"b", "this is too large"), (None, "cannot be read")])
def test_a_caption_file_that_is_none_is_named(tmp_path, content, message):
    picture(tmp_path / "1.png")
    if content is None:
        (tmp_path / "1.txt").mkdir()
    else:
        (tmp_path / "1.txt").write_bytes(content)
    with pytest.raises(AtelierError, match=rf"1\.txt: .*{message}"):
        scan(tmp_path, config())


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
def test_a_picture_of_hardly_any_pixels_is_read_and_remarked_upon(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "speck.png")
    (subset,) = scan(tmp_path, config())
    (row,) = inspect(Dataset((subset,)))
    assert row.to_dict()["size"] == size and "speck.png" in " ".join(remarks(subset))


def test_pictures_are_remembered_between_sessions_and_changes_noticed(tmp_path, monkeypatch):
    folder, file = tmp_path / "set", tmp_path / "index.json"
    for i in range(3):
        picture(folder / f"{i}.png", (i * 80, 0, 0))
    first = scan(folder, config(), index=file)
    opened = []
    real = index.look_into
    monkeypatch.setattr(index, "look_into", lambda path: opened.append(path.name) or real(path))
    index._known.clear()
    assert scan(folder, config(), index=file) == first and opened == []
    index._known.clear()
    picture(folder / "1.png", "blue")
    changed = scan(folder, config(), index=file)
    assert opened == ["1.png"] and changed[0].samples[1].key != first[0].samples[1].key


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 99}', '{"version": 1, "pictures": {"a": [1]}}', "\ud800"])
def test_a_damaged_memory_is_made_anew(tmp_path, content):
    folder, file = tmp_path / "set", tmp_path / "index.json"
    picture(folder / "1.png")
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert len(scan(folder, config(), index=file)[0].samples) == 1
    assert json.loads(file.read_text())["version"] == index.VERSION
