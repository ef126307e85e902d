"""Every file of a chosen folder is used or named with a reason."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.config import CAPTION_ENDINGS, SubsetConfig
from lora_atelier.training.dataset import names
from lora_atelier.training.dataset.captions import caption_path
from lora_atelier.training.dataset.images import EXTENSIONS
from lora_atelier.training.dataset.samples import Dataset, printable, some
from lora_atelier.training.dataset.scan import folder_stamp, refresh_captions, scan
from lora_atelier.training.dataset.walk import find
from lora_atelier.training.errors import AtelierError
from PIL import Image


def config(**values):
    return SubsetConfig("input/set", **values)


def picture(path, colour="red", size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def put(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def said(subsets, quiet=False):
    return "\n".join(text for subset in subsets for text in (subset.notes if quiet else subset.warnings))


STEMS = (
    "a",
    "A",
    "b",
    "a.jpg",
    "a_mask",
    "a-masklabel",
    "mask_a",
    "b.mask",
    "b.control",
    "b.control2",
    "a_control_1",
    "c-condlabel",
    "metadata",
    ".x",
    "._a",
    "ü",
)
SUFFIXES = (
    ".png", ".PNG", ".jpg", ".jfif", ".tif", ".txt", ".TXT", ".caption", ".json", ".jsonl", ".npz", ".safetensors", ".mp4",
    ".heic", ".psd", ".zip", ".part", ".db", ".nef", ".csv", "",
)  # fmt: skip
FOLDERS = (
    "",
    "5_cat",
    "more",
    "masks",
    "Mask",
    "5_cat_mask",
    "control",
    "control_2",
    "5_cat_control",
    "@eaDir",
    "reg",
    ".hidden",
    "img/3_dog",
    "log",
    "5_cat/deep",
    "captions",
)


FILES = st.builds(lambda *parts: "{}/{}{}".format(*parts).strip("/"), *map(st.sampled_from, (FOLDERS, STEMS, SUFFIXES)))


@settings(max_examples=150, deadline=None)
@given(st.sets(FILES, max_size=25), st.booleans(), st.sampled_from([".txt", ".caption"]))
def test_every_file_is_used_or_named(files, nested, extension):
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        every = [put(base / name) for name in files]
        picture(base / "z.png")
        found = find(base, nested=nested, extension=extension)
        named = [path for one in found for _, path in one.unused]
        controls = [path for one in found for group in one.controls.values() for path in group]
        used = {path for one in found for path in (*one.pictures, *one.tables, *one.masks.values(), *controls)}
        for one in found:
            for path in one.pictures:
                usual = caption_path(path, extension)
                used.add(usual if usual in every else one.captions.get(path, usual))
        for path in every:
            above = [path, *path.parents]
            # A folder that is not used is named as a whole.
            assert (path in used) + (sum(one in named for one in above)) == 1, path.relative_to(base)
        assert len(named) == len(set(named))


def test_the_reasons_are_grouped_counted_and_name_the_first_few(tmp_path):
    picture(tmp_path / "1.png")
    for name in ("a.mp4", "b.MOV", "c.mkv", "d.webm", "e.avi", "f.nef", "g.psd", "h.zip", "i.png.part", "j"):
        put(tmp_path / name)
    subsets = scan(tmp_path, config())
    assert "films are not trained on (5): a.mp4, b.MOV, c.mkv and 2 more. Set clip_frames of Load Dataset" in said(subsets)
    for name, words in {
        "f.nef": "raw photos",
        "g.psd": "format",
        "h.zip": "Unpack",
        "i.png.part": "unfinished",
        "j": "without an ending",
    }.items():
        assert any(name in text and words in text for text in subsets[0].warnings), name


def test_what_other_programs_leave_is_one_quiet_line_and_never_a_picture(tmp_path):
    picture(tmp_path / "1.png")
    put(tmp_path / "1.txt", "one")
    for name in (
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        "1.npz",
        "1_flux.safetensors",
        "meta_lat.json",
        "._1.png",
        "aspect_ratio_bucket_metadata_x.json",
    ):
        put(tmp_path / name)
    for folder in ("@eaDir", "__MACOSX", "_latent_cache", ".thumbnails", "5_cat/@eaDir"):
        picture(tmp_path / folder / "1.png")
    picture(tmp_path / "5_cat" / "2.png")
    for nested in (False, True):
        subsets = scan(tmp_path, config(nested=nested))
        assert [s.path.name for subset in subsets for s in subset.samples] == ["1.png", "2.png"]
        assert [w for subset in subsets for w in subset.warnings] == []
        assert [len(subset.notes) for subset in subsets] == [1, 1]
        assert subsets[0].notes[0].startswith("left by other programs and not used (12): ")
        assert subsets[1].notes == ("left by other programs and not used (1): 5_cat/@eaDir.",)


def test_notes_come_after_warnings_in_the_summary(tmp_path):
    picture(tmp_path / "1.png")
    put(tmp_path / "Thumbs.db")
    put(tmp_path / "a.mp4")
    text = Dataset(scan(tmp_path, config())).describe()
    assert text.index("Note: films") < text.index("Also there: left by other programs and not used (1): Thumbs.db.")


def test_warnings_are_logged(tmp_path, caplog):
    picture(tmp_path / "1.png")
    put(tmp_path / "a.mp4")
    scan(tmp_path, config())
    assert any("input/set: films are not trained on (1): a.mp4." in record.getMessage() for record in caplog.records)


def test_what_lies_in_folders_without_pictures_is_named_as_well(tmp_path):
    put(tmp_path / "film.mp4")
    put(tmp_path / "3_dog" / "raw.nef")
    picture(tmp_path / "5_cat" / "1.png")
    text = said(scan(tmp_path, config()))
    assert "film.mp4" in text and "3_dog/raw.nef" in text


@pytest.mark.parametrize("frames", ["", "3"])
@pytest.mark.parametrize("beside", ["masks", "control"])
def test_a_film_among_masks_and_control_pictures_is_told_to_be_neither(tmp_path, beside, frames):
    picture(tmp_path / "1.png")
    put(tmp_path / beside / "1.mp4")
    picture(tmp_path / beside / "1.png")
    text = said(scan(tmp_path, config(clip_frames=frames)))
    assert "films are neither masks nor control pictures (1)" in text and "Set clip_frames" not in text


@pytest.mark.parametrize("extension", [".jfif", ".JPE", ".tif", ".TIFF", ".gif", ".BMP", ".tga", ".ppm"])
def test_pictures_with_less_usual_endings_are_used(tmp_path, extension):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "x.tga" if extension == ".tga" else tmp_path / f"x{extension}")
    (subset,) = scan(tmp_path, config())
    assert [(s.width, s.height) for s in subset.samples] == [(64, 48)] and subset.warnings == ()


@pytest.mark.parametrize("extension", [".gif", ".png", ".webp", ".tif"])
def test_of_a_moving_picture_the_first_frame_is_used_and_that_is_said(tmp_path, extension):
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / f"x{extension}", save_all=True, append_images=frames[1:])
    picture(tmp_path / "still.png")
    (subset,) = scan(tmp_path, config())
    assert f"of several frames or pages only the first is used (1): x{extension}." in subset.warnings


def test_caption_files_never_have_an_ending_of_pictures():
    assert not ({".safetensors", ".jsonl"} | EXTENSIONS | names.HEIF) & set(CAPTION_ENDINGS)


# Captions of other names


@pytest.mark.parametrize("name", ["cat.TXT", "Cat.txt", "cat.jpg.txt", "CAT.JPG.TXT"])
def test_captions_in_other_case_or_with_the_whole_name_are_used(tmp_path, name):
    picture(tmp_path / "cat.jpg")
    put(tmp_path / name, "a cat")
    (subset,) = scan(tmp_path, config())
    assert subset.samples[0].caption == "a cat" and subset.warnings == ()
    before = folder_stamp(tmp_path)
    put(tmp_path / name, "a larger cat")
    assert folder_stamp(tmp_path) != before
    dataset = refresh_captions(Dataset((subset,)))
    assert [s.caption for s in dataset.samples] == ["a larger cat"]
    put(tmp_path / "cat.txt", "the usual one")
    assert [s.caption for s in refresh_captions(dataset).samples] == ["the usual one"]
    (again,) = scan(tmp_path, config())
    assert again.samples[0].caption == "the usual one"
    if not (tmp_path / name).samefile(tmp_path / "cat.txt"):
        assert f"second caption files of a picture are not used (1): {name}." in said((again,))


def test_captions_with_another_ending_are_named_with_what_to_choose(tmp_path):
    picture(tmp_path / "1.png")
    put(tmp_path / "1.caption", "one")
    text = said(scan(tmp_path, config()))
    assert (
        text
        == ".caption files look like captions and are not read (1): 1.caption. Set caption_extension to .caption to use them."
    )
    assert said(scan(tmp_path, config(caption_extension=".caption"))) == ""
    put(tmp_path / "1.txt", "one")
    (subset,) = scan(tmp_path, config())
    assert subset.warnings == () and "1.caption" in said((subset,), quiet=True)


def test_captions_without_a_picture_are_named_unless_their_picture_is(tmp_path):
    picture(tmp_path / "1.png")
    put(tmp_path / "2.txt", "two")
    put(tmp_path / "film.mp4")
    put(tmp_path / "film.txt", "a film")
    (subset,) = scan(tmp_path, config())
    assert any("caption files without a picture are not used (1): 2.txt." in text for text in subset.warnings)
    assert any("film.txt" in text for text in subset.notes)


@pytest.mark.parametrize("name", ["1.json", "meta_cap.json", "metadata.csv", "captions.parquet"])
def test_tables_that_may_hold_captions_are_named_loudly_only_where_captions_are_missing(tmp_path, name):
    picture(tmp_path / "1.png")
    put(tmp_path / name, "{}")
    assert f"may hold captions and are not read (1): {name}." in said(scan(tmp_path, config()))
    put(tmp_path / "1.txt", "one")
    (subset,) = scan(tmp_path, config())
    assert subset.warnings == () and name in said((subset,), quiet=True)


def test_empty_captions_are_named(tmp_path):
    picture(tmp_path / "1.png")
    put(tmp_path / "1.txt", "  \n")
    assert "captions that are empty, and are trained on as that (1): 1.png." in said(scan(tmp_path, config()))
    assert said(scan(tmp_path, config(captions=False))) == ""


def test_an_empty_picture_says_that_it_is_empty(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(AtelierError, match=r"2\.png: this picture cannot be read \(the file is empty, it has 0 bytes\)"):
        scan(tmp_path, config())
    (subset,) = scan(tmp_path, config(broken="leave out"))
    assert len(subset.samples) == 1 and "2.png" in said((subset,))


@pytest.mark.parametrize(("one", "other"), [("001.png", "001.jpg"), ("a.png", "A.png"), ("a.jpg", "A.png")])
def test_pictures_that_share_a_name_are_told(tmp_path, one, other):
    for name in (one, other):
        picture(tmp_path / name)
    (subset,) = scan(tmp_path, config())
    pairs = " and ".join(sorted((one, other), key=names.natural_key))
    assert f"pictures with one name share one caption file and one mask: {pairs}. Rename one" in said((subset,))


def test_pictures_that_share_a_stem_may_have_captions_of_their_whole_names(tmp_path):
    for name in ("001.png", "001.jpg"):
        picture(tmp_path / name)
        put(tmp_path / f"{name}.txt", f"of {name}")
    (subset,) = scan(tmp_path, config())
    assert [s.caption for s in subset.samples] == ["of 001.jpg", "of 001.png"] and subset.warnings == ()


@pytest.mark.parametrize(("one", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_the_same_however_its_accents_are_stored(tmp_path, one, other):
    """Archives and drives of a Mac bring the second form of names that other systems write in the first."""
    picture(tmp_path / unicodedata.normalize(one, "café.jpg"))
    put(tmp_path / unicodedata.normalize(other, "café.txt"), "coffee")
    Image.new("L", (64, 48)).save(tmp_path / unicodedata.normalize(other, "café-masklabel.png"))
    (subset,) = scan(tmp_path, config(masks="files"))
    assert [s.caption for s in subset.samples] == ["coffee"] and subset.samples[0].mask is not None and subset.warnings == ()


@pytest.mark.parametrize("names_", [("cat.TXT", "cat.jpg.txt"), ("cat.TXT", "CAT.txt"), ("cat.txt", "cat.jpg.TXT", "CAT.txt")])
def test_second_captions_are_said_to_be_that(tmp_path, names_):
    picture(tmp_path / "cat.jpg")
    for name in names_:
        put(tmp_path / name, "a cat")
    (subset,) = scan(tmp_path, config())
    if len({path.name for path in tmp_path.iterdir()}) == 1 + len(names_):
        assert f"second caption files of a picture are not used ({len(names_) - 1})" in said((subset,))
        assert "without a picture" not in said((subset,))


@pytest.mark.parametrize("ending", CAPTION_ENDINGS)
def test_every_ending_that_captions_may_have_is_named(tmp_path, ending):
    picture(tmp_path / "cat.jpg")
    put(tmp_path / f"cat{ending}", "a cat")
    extension = ".caption" if ending == ".txt" else ".txt"
    assert f"{ending} files look like captions" in said(scan(tmp_path, config(caption_extension=extension)))


def test_a_caption_belongs_to_the_picture_of_its_own_case(tmp_path):
    for name in ("a.png", "A.jpg"):
        picture(tmp_path / name)
    put(tmp_path / "a.txt", "small")
    (subset,) = scan(tmp_path, config())
    if not (tmp_path / "A.txt").exists():
        assert {s.path.name: s.caption for s in subset.samples} == {"a.png": "small", "A.jpg": None}


# Names


def test_names_that_are_no_utf8_are_named_and_everything_else_goes_on(tmp_path):
    picture(tmp_path / "1.png")
    base = os.fsencode(tmp_path)
    try:
        for name in (b"caf\xe9.png", b"caf\xe9.txt"):
            with open(base + b"/" + name, "wb") as file:
                file.write((tmp_path / "1.png").read_bytes())
        os.mkdir(base + b"/5_\xff")
        with open(base + b"/5_\xff/2.png", "wb") as file:
            file.write((tmp_path / "1.png").read_bytes())
    except OSError:
        pytest.skip("this file system knows no such names")
    index = tmp_path.parent / "index.json"
    subsets = scan(tmp_path, config(nested=True), index=index)
    assert [s.path.name for subset in subsets for s in subset.samples] == ["1.png"]
    assert r"names that are not UTF-8 are not used (3): 5_\xff, caf\xe9.png, caf\xe9.txt. Rename them." in said(subsets)
    Dataset(subsets).describe().encode("utf-8")
    assert folder_stamp(tmp_path) and index.is_file() and Dataset(subsets).fingerprint


ODD = [
    "a\nb.png",
    "[x] (1) {y}.png",
    "😀 猫.png",
    "con.png",
    "aux.jpg",
    "trailing .png",
    "%s%d.png",
    "a'\"b.png",
    "-rf.png",
    "x" * 251 + ".png",
    "é" * 120 + ".jpg",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_used_and_shown_on_one_line(tmp_path, name):
    try:
        picture(tmp_path / name)
        put((tmp_path / name).with_suffix(".txt"), "a caption")
    except OSError:
        pytest.skip("this file system knows no such names")
    (subset,) = scan(tmp_path, config(), index=tmp_path.parent / "index.json")
    assert [s.caption for s in subset.samples] == ["a caption"]
    # The caption file of another ending would have too long a name; there is none, and that is no error.
    (other,) = scan(tmp_path, config(caption_extension=".captions"))
    assert [s.caption for s in other.samples] == [None] and all("\n" not in text for text in (*other.warnings, *other.notes))


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_name_can_be_shown(name):
    shown = printable(name)
    assert shown.encode("utf-8") is not None and (shown.isprintable() or not shown)
    assert len(some([name] * 5)) > 0


def test_a_pipe_is_not_waited_for(tmp_path):
    picture(tmp_path / "1.png")
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has none")
    os.mkfifo(tmp_path / "2.png")
    assert "no regular files, so they are not opened (1): 2.png." in said(scan(tmp_path, config()))
