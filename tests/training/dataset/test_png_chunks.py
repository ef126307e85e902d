"""PNG files with large or damaged side information, whose pixels are sound."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from lora_atelier.training.dataset.images import check_picture, look_at, open_picture, picture_size
from lora_atelier.training.dataset.png_chunks import without_what_pillow_refuses
from lora_atelier.training.errors import AtelierError
from PIL import Image, ImageCms, PngImagePlugin

MB = 2**20


def chunk(name: bytes, data: bytes, sum_: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if sum_ is None else sum_)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)


def png(*extra: bytes, at_end: bool = False) -> bytes:
    """The picture of ``pixels`` with chunks behind its header, or in front of its end."""
    file = io.BytesIO()
    Image.fromarray(pixels()).save(file, "PNG")
    data = file.getvalue()
    place = len(data) - 12 if at_end else 33
    return data[:place] + b"".join(extra) + data[place:]


def swapped_profile(filling: int) -> bytes:
    """An sRGB profile with red and blue exchanged, with so many bytes of a table, as those of scanners and printers have."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    grown = swapped + bytes(np.random.default_rng(1).integers(0, 4, filling, np.uint8))
    return struct.pack(">I", len(grown)) + grown[4:]


def profile_chunk(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"a profile\0\0" + zlib.compress(profile))


LARGE = b"x" * (3 * MB)
SOUND = {
    "a large zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
    "a large compressed iTXt": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(LARGE)),
    "a large plain iTXt": chunk(b"iTXt", b"prompt\0\0\0\0\0" + LARGE),
    "a large tEXt": chunk(b"tEXt", b"workflow\0" + LARGE * 30),
    "many texts": b"".join(chunk(b"tEXt", b"text %d\0" % i + LARGE) for i in range(30)),
    "a text of unknown compression": chunk(b"zTXt", b"workflow\0\7" + b"abc"),
    "a text that is damaged inside": chunk(b"zTXt", b"workflow\0\0" + b"not zlib"),
    "a text with a wrong sum": chunk(b"tEXt", b"a\0b", sum_=1),
    "a resolution with a wrong sum": chunk(b"pHYs", bytes(9), sum_=1),
    "a profile that is none": chunk(b"iCCP", b"x"),
    "a profile of unknown compression": chunk(b"iCCP", b"a\0\5abc"),
    "a profile without end": chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * (100 * MB))),
    "an empty text": chunk(b"zTXt", b"") + chunk(b"iTXt", b""),
}  # fmt: skip


@pytest.mark.parametrize("at_end", [False, True], ids=["in front", "behind"])
@pytest.mark.parametrize("name", SOUND)
def test_side_information_does_not_make_a_sound_picture_broken(tmp_path, name, at_end):
    path = tmp_path / "x.png"
    path.write_bytes(png(SOUND[name], at_end=at_end))
    check_picture(path)
    assert picture_size(path) == (32, 24) and np.array_equal(np.asarray(open_picture(path)), pixels())
    with open(path, "rb") as file:
        assert look_at(path, file)[0] == (32, 24)


def test_pillow_alone_refuses_them():
    for name in ("a large zTXt", "many texts", "a text with a wrong sum"):
        with pytest.raises((ValueError, SyntaxError, OSError)):
            Image.open(io.BytesIO(png(SOUND[name]))).load()


@pytest.mark.parametrize("filling", [0, 2 * MB])
def test_a_large_colour_profile_is_applied_like_a_small_one(tmp_path, filling):
    path = tmp_path / "x.png"
    path.write_bytes(png(profile_chunk(swapped_profile(filling))))
    if filling:
        with pytest.raises(ValueError, match="Decompressed data too large"):
            Image.open(path)
    check_picture(path)
    difference = np.asarray(open_picture(path)).astype(int) - pixels()[..., ::-1]
    assert np.abs(difference).max() <= 3


def test_orientation_in_a_text_survives(tmp_path):
    """ImageMagick writes EXIF data into a zTXt; a large one beside it goes, this one stays."""
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    text = f"\nexif\n{len(raw):8d}\n{raw.hex()}\n".encode()
    path = tmp_path / "x.png"
    path.write_bytes(png(SOUND["a large zTXt"], chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))))
    assert picture_size(path) == (24, 32) == open_picture(path).size


def test_nothing_of_pillow_is_changed_and_a_plain_file_is_passed_on(tmp_path):
    before = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    file = io.BytesIO(png())
    assert without_what_pillow_refuses(file) == (file, None)
    without_what_pillow_refuses(io.BytesIO(png(SOUND["many texts"])))
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_a_picture_that_was_cut_off_stays_broken(tmp_path, share):
    path = tmp_path / "x.png"
    whole = png(SOUND["a large zTXt"], profile_chunk(swapped_profile(2 * MB)))
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(AtelierError, match=r"x\.png: this picture cannot be read"):
        check_picture(path)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_gives_a_picture_or_a_sentence(tmp_path, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(
        png(
            SOUND["a text with a wrong sum"],
            profile_chunk(swapped_profile(2000)),
            chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b" * 99)),
        )
    )
    for place in rng.integers(8, len(data), 1 + seed % 7):
        data[place] = rng.integers(256)
    path = tmp_path / "x.png"
    path.write_bytes(data)
    for read in (check_picture, open_picture, picture_size):
        try:
            read(path)
        except AtelierError as error:
            assert "x.png" in str(error)
