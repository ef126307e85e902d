"""Turning pictures: what Pillow shows afterwards, with every orientation, and all else in the files as it was."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests import fuzz
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.images import open_picture
from lora_atelier.training.dataset.turning import turn, turned_file, with_orientation
from lora_atelier.training.errors import AtelierError
from PIL import Image, ImageOps, PngImagePlugin

CONFIG = SubsetConfig("input/set")
KINDS = {
    "jpg": {"quality": 90}, "png": {}, "webp": {"quality": 80}, "lossless.webp": {"lossless": True}, "tif": {}, "bmp": {},
    "ppm": {}, "tga": {}, "gif": {},
}  # fmt: skip
WITH_EXIF = ("jpg", "png", "webp", "tif")


def picture(mode="RGB", size=(13, 7)):
    """Another colour at every place."""
    levels = np.arange(size[0] * size[1] * 4, dtype=np.uint32).reshape(size[1], size[0], 4) * 7 % 256
    whole = Image.fromarray(levels.astype(np.uint8), "RGBA")
    return whole.convert(mode)


def shown(path):
    return np.asarray(open_picture(path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_picture_is_the_old_one_turned(tmp_path, kind, quarters):
    path = tmp_path / f"a.{kind}"
    picture("P" if kind == "gif" else "RGB").save(path, **KINDS[kind])
    before = shown(path)
    path.write_bytes(turned_file(path, quarters))
    assert np.array_equal(shown(path), np.rot90(before, -quarters))


@pytest.mark.parametrize("kind", WITH_EXIF)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_on_and_the_rest_of_the_exif_stays(tmp_path, kind, orientation):
    path = tmp_path / f"a.{kind}"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = orientation, "Maker", "me"
    picture().save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    path.write_bytes(turned_file(path, 1))
    with Image.open(path) as image:
        seen = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    with Image.open(path) as image:
        kept = image.getexif()
        assert (kept[0x010F], kept[0x8298]) == ("Maker", "me")
    assert np.array_equal(seen, np.rot90(expected, -1))


def test_four_quarters_are_the_file_itself_where_it_says_how_it_lies(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 1
    picture().save(path, exif=exif)
    first = path.read_bytes()
    for _ in range(4):
        path.write_bytes(turned_file(path, 1))
    assert path.read_bytes() == first


def test_pixels_texts_and_depth_stay_as_they_are_stored(tmp_path):
    """The pixels' own bytes are the same before and after: nothing was encoded anew."""
    jpeg, png, deep = tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "deep.png"
    picture().save(jpeg, quality=70, dpi=(300, 300), comment=b"mine")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", '{"nodes": []}')
    picture("RGBA").save(png, pnginfo=texts, dpi=(300, 300))
    Image.fromarray(np.arange(91, dtype=np.uint16).reshape(7, 13) * 600).save(deep)
    for path in (jpeg, png, deep):
        before = path.read_bytes()
        after = turned_file(path, 1)
        mark = b"\xff\xda" if path is jpeg else b"IDAT"
        assert after[after.index(mark) :] == before[before.index(mark) :]
    with Image.open(io.BytesIO(turned_file(png, 1))) as image:
        image.load()
        assert image.text["workflow"] == '{"nodes": []}' and image.mode == "RGBA"
    with Image.open(io.BytesIO(turned_file(jpeg, 1))) as image:
        assert image.info["comment"] == b"mine" and image.info["dpi"] == (300, 300)


def test_what_cannot_be_turned_without_loss_is_refused(tmp_path):
    film, avif = tmp_path / "film.gif", tmp_path / "a.avif"
    picture("P").save(film, save_all=True, append_images=[picture("P").transpose(Image.Transpose.FLIP_TOP_BOTTOM)])
    picture(size=(32, 16)).save(avif)
    for path, why in ((film, "several frames"), (avif, "encoded anew")):
        before = path.read_bytes()
        with pytest.raises(AtelierError, match=why):
            turned_file(path, 1)
        assert path.read_bytes() == before


def test_masks_turn_with_their_pictures_and_captions_stay(tmp_path):
    picture().save(tmp_path / "cat.jpg")
    picture("L").save(tmp_path / "cat.mask.png")
    (tmp_path / "cat.txt").write_text("a cat")
    before = shown(tmp_path / "cat.mask.png")
    turn(tmp_path, ["cat.jpg"], 1, CONFIG, tmp_path)
    assert np.array_equal(shown(tmp_path / "cat.mask.png"), np.rot90(before, -1))
    assert open_picture(tmp_path / "cat.jpg").size == (7, 13) and (tmp_path / "cat.txt").read_text() == "a cat"
    assert not list(tmp_path.glob("*.partial"))


def test_control_pictures_and_second_masks_turn_too(tmp_path):
    (tmp_path / "control_2").mkdir()
    picture().save(tmp_path / "cat.jpg")
    others = ["cat.mask.png", "cat_mask.png", "cat_control.png", "control_2/cat.png", "cat.control.png"]
    for name in others:
        picture().save(tmp_path / name)
    before = {name: shown(tmp_path / name) for name in others}
    turn(tmp_path, ["cat.jpg"], 1, CONFIG, tmp_path)
    for name in others:
        assert np.array_equal(shown(tmp_path / name), np.rot90(before[name], -1)), name


def test_a_link_stays_one_and_its_file_is_turned(tmp_path):
    (tmp_path / "set").mkdir()
    picture().save(tmp_path / "elsewhere.png")
    (tmp_path / "set" / "cat.png").symlink_to(tmp_path / "elsewhere.png")
    turn(tmp_path / "set", ["cat.png"], 1, CONFIG, tmp_path)
    assert (tmp_path / "set" / "cat.png").is_symlink() and open_picture(tmp_path / "elsewhere.png").size == (7, 13)


@pytest.mark.parametrize("fails", [2, 3])
def test_what_was_written_before_one_failed_is_put_back(tmp_path, monkeypatch, fails):
    names = ["cat.jpg", "cat.mask.png", "cat_control.png"]
    for name in names:
        picture().save(tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in names}
    replace, calls = os.replace, []

    def locked(start, end):
        calls.append(end)
        if len(calls) == fails:
            raise PermissionError(13, "in use by another program")
        replace(start, end)

    monkeypatch.setattr(os, "replace", locked)
    with pytest.raises(AtelierError, match="in use by another program"):
        turn(tmp_path, ["cat.jpg"], 1, CONFIG, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before and len(calls) > fails


def test_all_are_turned_or_none(tmp_path):
    picture().save(tmp_path / "a.png")
    picture(size=(32, 16)).save(tmp_path / "b.avif")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(AtelierError, match=r"b\.avif"):
        turn(tmp_path, ["a.png", "b.avif"], 1, CONFIG, tmp_path)
    with pytest.raises(AtelierError, match="not in"):
        turn(tmp_path, ["a.png", "../a.png"], 1, CONFIG, tmp_path)
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_mask_of_two_pictures_does_not_turn_with_one(tmp_path):
    picture().save(tmp_path / "cat.jpg")
    picture().save(tmp_path / "cat.png")
    picture("L").save(tmp_path / "cat.mask.png")
    with pytest.raises(AtelierError, match=r"cat\.png has the same mask"):
        turn(tmp_path, ["cat.jpg"], 1, CONFIG, tmp_path)
    turn(tmp_path, ["cat.jpg", "cat.png"], 1, CONFIG, tmp_path)
    assert open_picture(tmp_path / "cat.mask.png").size == (7, 13)


@given(st.data(), st.sampled_from(["jpg", "png", "webp", "tif"]))
def test_damaged_files_are_refused_in_a_sentence(tmp_path_factory, data, kind):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    picture().save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}[kind], exif=exif)
    path = tmp_path_factory.mktemp("bad") / f"a.{kind}"
    path.write_bytes(data.draw(fuzz.damaged(buffer.getvalue())))
    try:
        out = turned_file(path, 1)
    except AtelierError as error:
        assert path.name in str(error)
    else:
        before = shown(path)
        path.write_bytes(out)
        assert np.array_equal(shown(path), np.rot90(before, -1))


@given(st.binary(max_size=80))
def test_directories_of_any_bytes_raise_nothing_else(data):
    for start in (b"II*\0", b"MM\0*"):
        try:
            with_orientation(start + data, 6)
        except struct.error:
            continue
