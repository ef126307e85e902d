"""What is learnt of a picture: from one look at its file, and the same as from one look for each question."""

from __future__ import annotations

import builtins
import functools
import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lora_atelier.training.dataset import images, index
from lora_atelier.training.dataset.near_duplicates import look_of
from lora_atelier.training.errors import AtelierError
from PIL import Image, ImageFile


def looked_into_step_by_step(path: Path) -> index.Facts:
    """The facts with the file opened anew for each of them, as the functions for one question give them."""
    images.check_picture(path)
    width, height = images.picture_size(path)
    with Image.open(path) as image:
        try:
            image.draft("RGB", (64, 64))
            image.load()
        except (OSError, SyntaxError) as error:
            raise AtelierError(
                f"{path}: this picture cannot be read ({error}). Repair it, or take it out of the folder."
            ) from error
        small = images._to_8_bit(image)
        if max(small.size) > 256:
            small.thumbnail((256, 256), Image.Resampling.BOX)
        small = images._on_white(small.convert("RGBA") if "transparency" in small.info else small)
    return index.Facts(width, height, hashlib.sha256(path.read_bytes()).hexdigest(), look_of(small))


def scene(size=(600, 400)) -> Image.Image:
    """Left darker than right, with enough detail that a decoder at a fraction of the size shows."""
    ramp = np.linspace(0, 160, size[0])[None] + np.random.default_rng(1).normal(40, 30, (size[1], size[0]))
    return Image.merge("RGB", [Image.fromarray((ramp * part).clip(0, 255).astype(np.uint8)) for part in (1, 0.8, 0.5)])


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def stored(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def without_checksum(data: bytes) -> bytes:
    """A PNG whose last checksum of pixels is wrong: its structure leaves a doubt, and its pixels are whole."""
    place = data.rindex(b"IEND") - 8
    return data[:place] + bytes(4) + data[place + 4 :]


@functools.cache
def sound() -> dict[str, bytes]:
    alpha = scene()
    alpha.putalpha(scene().getchannel(1))
    grey = Image.fromarray(np.asarray(scene().convert("L"), np.uint16) * 257)
    jpeg = stored(scene(), "JPEG", quality=92, exif=turned())
    return {
        "plain.png": stored(scene(), "PNG"), "alpha.png": stored(alpha, "PNG"),
        "turned.png": stored(scene(), "PNG", exif=turned()),
        "palette.png": stored(scene().quantize(16), "PNG", transparency=3), "sixteen.png": stored(grey, "PNG"),
        "checksum.png": without_checksum(stored(scene(), "PNG", exif=turned())),
        "turned.jpg": jpeg, "small.jpg": stored(scene((40, 30)), "JPEG"), "cmyk.jpg": stored(scene().convert("CMYK"), "JPEG"),
        "film.jpg": jpeg + bytes(10_000),
        "lossy.webp": stored(scene(), "WEBP", exif=turned()), "lossless.webp": stored(alpha, "WEBP", lossless=True),
        "plain.bmp": stored(scene(), "BMP"), "misnamed.png": stored(scene(), "TIFF", exif=turned()),
        **({"plain.avif": stored(scene(), "AVIF", exif=turned())} if ".avif" in images.EXTENSIONS else {}),
    }  # fmt: skip


@functools.cache
def broken() -> dict[str, bytes]:
    whole = sound()
    cut = {f"cut-{name}": data[: len(data) * 3 // 5] for name, data in whole.items() if name != "misnamed.png"}
    return {**cut, "empty.png": b"", "page.jpg": b"<!DOCTYPE html>", "header.jpg": whole["turned.jpg"][:400]}


@pytest.fixture
def opened(monkeypatch) -> Counter:
    """How often each file was opened, by name."""
    counts: Counter = Counter()
    real = builtins.open

    def counting(file, *given, **named):
        if isinstance(file, (str, os.PathLike)):
            counts[Path(file).name] += 1
        return real(file, *given, **named)

    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(io, "open", counting)
    return counts


@pytest.mark.parametrize("at_once", [index.AT_ONCE, 0], ids=["in memory", "as it lies"])
@pytest.mark.parametrize("name", sorted(sound()))
def test_one_look_tells_what_one_look_for_each_question_tells(tmp_path, monkeypatch, opened, name, at_once):
    monkeypatch.setattr(index, "AT_ONCE", at_once)
    path = tmp_path / name
    path.write_bytes(sound()[name])
    opened.clear()
    found = index.look_into(path)
    assert opened == {name: 1}
    assert found == looked_into_step_by_step(path)
    assert opened[name] >= 5, "or opening was not counted"


@pytest.mark.parametrize("at_once", [index.AT_ONCE, 0], ids=["in memory", "as it lies"])
@pytest.mark.parametrize("name", sorted(broken()))
def test_one_look_refuses_with_the_same_words(tmp_path, monkeypatch, opened, name, at_once):
    monkeypatch.setattr(index, "AT_ONCE", at_once)
    path = tmp_path / name
    path.write_bytes(broken()[name])
    opened.clear()
    with pytest.raises(AtelierError) as found:
        index.look_into(path)
    assert opened == {name: 1}
    with pytest.raises(AtelierError) as expected:
        looked_into_step_by_step(path)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("name", ["plain.png", "turned.png", "turned.jpg", "lossy.webp", "plain.bmp"])
def test_a_picture_is_decoded_once(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(sound()[name])
    decoded, real = [], ImageFile.ImageFile.load

    def load(image):
        if image.tile:  # none of it is left once it is decoded
            decoded.append(image.format)
        return real(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    index.look_into(path)
    assert len(decoded) == 1


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "folder.png"
    path.mkdir()
    with pytest.raises(AtelierError, match=r"folder\.png: this picture cannot be read \(.*\)\. Allow it, or remove it\."):
        index.Index().facts(path)
