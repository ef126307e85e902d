"""Reading pictures as a person sees them, and scaling them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.dataset import images
from lora_atelier.training.dataset.images import (
    EXTENSIONS,
    HEIF,
    check_picture,
    cut,
    look_at,
    open_picture,
    picture_size,
    to_unit,
)
from lora_atelier.training.errors import AtelierError
from PIL import Image, ImageCms, ImageOps, features


def small_picture(path):
    with open(path, "rb") as file:
        return look_at(path, file)[1]


def stripes(width=64, height=32):
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("extension", sorted(EXTENSIONS - HEIF))
def test_every_format_is_read(tmp_path, extension):
    path = tmp_path / f"x{extension}"
    stripes().save(path, quality=95) if extension != ".bmp" else stripes().save(path)
    image = open_picture(path)
    assert image.mode == "RGB" and image.size == (64, 32) == picture_size(path)
    assert np.allclose(image.getpixel((8, 16)), (255, 0, 0), atol=12)
    assert np.allclose(image.getpixel((56, 16)), (0, 0, 255), atol=12)


def test_avif_is_offered_exactly_where_pillow_has_it():
    assert (".avif" in EXTENSIONS) == features.check("avif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_pixels_and_size(tmp_path, orientation):
    """A phone stores the picture turned and says how to turn it back."""
    upright = stripes(64, 32)
    upright.paste((0, 255, 0), (0, 0, 8, 8))
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    stored.save(path, exif=exif)
    assert picture_size(path) == (64, 32)
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_do_not_stop_the_picture(tmp_path):
    path = tmp_path / "x.jpg"
    stripes().save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff\0\x01")
    assert open_picture(path).size == (64, 32)


def test_an_embedded_profile_is_converted_to_srgb(tmp_path):
    """The same colour named in another space: L*a*b* values written through a profile whose primaries are swapped."""
    image = Image.new("RGB", (4, 4), (200, 30, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # rXYZ and bXYZ exchanged: red numbers then mean blue light.
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    path = tmp_path / "x.png"
    image.save(path, icc_profile=swapped)
    assert np.allclose(open_picture(path).getpixel((0, 0)), (60, 30, 200), atol=3)
    image.save(path, icc_profile=srgb)
    assert np.allclose(open_picture(path).getpixel((0, 0)), (200, 30, 60), atol=1)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK"])
def test_a_profile_that_does_not_fit_or_is_broken_counts_as_srgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image = Image.new("RGB", (8, 8), (128, 128, 128)).convert(mode)
    plain = np.asarray(image.convert("RGB"))
    for profile in (b"no profile at all", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()):
        image.save(path, icc_profile=profile)
        assert np.allclose(np.asarray(open_picture(path)), plain, atol=3)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(path)
    assert [p[0] for p in np.asarray(open_picture(path))[0]] == [0, 100, 255]


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_colour_or_transparency_keep_their_upper_half(tmp_path, kind, channels):
    """PNG of colour, grey with transparency, and colour with transparency: one pixel of 200 / 255 that is opaque."""
    path = tmp_path / "x.png"
    values = [200 * 257] * (channels - (kind > 2)) + [65535] * (kind > 2)
    row = b"\0" + b"".join(value.to_bytes(2, "big") for value in values)
    path.write_bytes(png((1, 1), 16, kind, row))
    check_picture(path)
    assert open_picture(path).getpixel((0, 0)) == (200, 200, 200) == small_picture(path).getpixel((0, 0))


def test_one_bit_is_black_and_white(tmp_path):
    Image.new("1", (8, 8), 1).save(tmp_path / "x.png")
    assert open_picture(tmp_path / "x.png").getpixel((0, 0)) == (255, 255, 255)


def test_alpha_is_laid_on_white(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(path)
    assert open_picture(path).getpixel((0, 0)) == (255, 255, 255)
    Image.new("RGBA", (2, 2), (0, 0, 0, 51)).save(path)
    assert open_picture(path).getpixel((0, 0)) == (204, 204, 204)
    Image.new("LA", (2, 2), (0, 51)).save(path)
    assert open_picture(path).getpixel((0, 0)) == (204, 204, 204)


def test_palettes_with_and_without_transparency(tmp_path):
    path = tmp_path / "x.png"
    palette = stripes().quantize(2)
    palette.save(path)
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(stripes()))
    palette.save(path, transparency=palette.getpixel((0, 0)))
    image = open_picture(path)
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((63, 0)) == (0, 0, 255)


def test_a_transparent_colour_of_a_plain_picture_is_white(tmp_path):
    path = tmp_path / "x.png"
    stripes().save(path, transparency=(255, 0, 0))
    image = open_picture(path)
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((63, 0)) == (0, 0, 255)


def test_cmyk_keeps_its_colours(tmp_path):
    path = tmp_path / "x.jpg"
    stripes().convert("CMYK").save(path, quality=95)
    assert np.allclose(open_picture(path).getpixel((8, 16)), (255, 0, 0), atol=12)


@pytest.mark.parametrize("extension", sorted({".webp", ".png", ".avif"} & EXTENSIONS))
def test_an_animation_gives_its_first_frame(tmp_path, extension):
    path = tmp_path / f"x{extension}"
    options = {".webp": {"lossless": True}, ".avif": {"quality": 100}}.get(extension, {})
    stripes().save(path, save_all=True, append_images=[Image.new("RGB", (64, 32), "green")], **options)
    with Image.open(path) as stored:
        assert stored.n_frames == 2
    check_picture(path)
    assert np.allclose(open_picture(path).getpixel((8, 16)), (255, 0, 0), atol=12)
    assert np.allclose(small_picture(path).getpixel((8, 16)), (255, 0, 0), atol=12)


def broken_files():
    buffer = io.BytesIO()
    noise_picture((256, 256), 60).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    buffer = io.BytesIO()
    noise_picture((256, 256), 60).save(buffer, "PNG")
    png = buffer.getvalue()
    return {"empty.png": b"", "page.jpg": b"<!DOCTYPE html>", "cut.jpg": jpeg[: len(jpeg) // 2], "cut.png": png[: len(png) // 2]}


@pytest.mark.parametrize("name", sorted(broken_files()))
def test_a_broken_picture_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    for read in (open_picture, check_picture):
        with pytest.raises(AtelierError, match=rf"{name}: this picture cannot be read"):
            read(path)


@pytest.mark.parametrize("extension", sorted(EXTENSIONS - HEIF))
def test_a_picture_that_was_cut_off_is_noticed_without_looking_at_it(tmp_path, extension):
    path = tmp_path / f"cut{extension}"
    noise_picture((128, 128), 60).save(path)
    check_picture(path)
    data = path.read_bytes()
    for share in (0.3, 0.7, 0.98):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(AtelierError, match=rf"cut{extension}: this picture cannot be read"):
            check_picture(path)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_what_follows_a_picture_does_not_matter(tmp_path, extension):
    """Phones append films to photos."""
    path = tmp_path / f"x{extension}"
    stripes().save(path)
    path.write_bytes(path.read_bytes() + bytes(50_000))
    check_picture(path)
    assert open_picture(path).size == (64, 32)


def png(size, depth, kind, rows):
    """A PNG of these bits a channel and this colour type, with ``rows`` (each begins with its filter) as they are."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def huge_png(side):
    """The header of a PNG that claims side x side pixels."""
    return png((side, side), 8, 2, b"\0" * 100)


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_a_decompression_bomb_is_refused_also_when_pillows_limit_is_off(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(60_000))
    for read in (open_picture, picture_size):
        with pytest.raises(AtelierError, match=r"bomb\.png: this picture has more than 178 million pixels"):
            read(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_photo_below_the_limit_passes(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(huge_png(10_000))
    assert picture_size(path) == (10_000, 10_000)


def to_tensor(image, scaled, box):
    return to_unit(cut(image, scaled, box))


def test_the_tensor_has_comfyuis_layout_and_untouched_values():
    image = stripes(64, 32)
    tensor = to_tensor(image, (64, 32), (0, 0, 64, 32))
    assert tensor.shape == (32, 64, 3) and tensor.dtype == torch.float32
    assert torch.equal(tensor, torch.from_numpy(np.array(image)).float() / 255)
    assert torch.equal(cut(image, (64, 32), (0, 0, 64, 32), flipped=True), torch.from_numpy(np.array(image)).flip(1))


def test_every_level_is_the_float_that_numpy_divides_to():
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_unit(torch.from_numpy(levels)).numpy(), levels.astype(np.float32) / np.float32(255.0))


def noise(size, seed=0):
    values = np.random.default_rng(seed).normal(128, 50, (size[1] // 8, size[0] // 8, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("scaled", [(100, 80), (180, 150), (77, 61)])
def test_shrinking_agrees_with_torchs_antialiased_filter(scaled):
    image = noise((200, 160))
    ours = to_tensor(image, scaled, (0, 0, *scaled))
    source = torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None] / 255
    reference = torch.nn.functional.interpolate(source, (scaled[1], scaled[0]), mode="bicubic", antialias=True)[0].permute(
        1, 2, 0
    )
    assert (ours - reference).abs().max() < 0.03


def test_fine_patterns_turn_grey_instead_of_shimmering():
    """A pattern of one-pixel checks has nothing left to show at a third of its size."""
    checks = np.indices((300, 300)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(checks[..., None], 3, -1).astype(np.uint8))
    tensor = to_tensor(image, (97, 97), (0, 0, 97, 97))
    assert (tensor - 0.5).abs().max() < 0.06


@pytest.mark.parametrize("scaled", [(100, 80), (400, 320), (133, 107)])
def test_cutting_before_scaling_is_cutting_after_scaling(scaled):
    image = noise((200, 160))
    whole = to_tensor(image, scaled, (0, 0, *scaled))
    left, top, right, bottom = scaled[0] // 4, scaled[1] // 5, scaled[0] // 4 * 3, scaled[1] // 5 * 4
    part = to_tensor(image, scaled, (left, top, right, bottom))
    assert part.shape == (bottom - top, right - left, 3)
    assert (part - whole[top:bottom, left:right]).abs()[4:-4, 4:-4].max() < 0.03


@pytest.mark.parametrize("name", ["x.tif", "x.png", "x.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_upright_whatever_its_name_is(tmp_path, name, orientation):
    """Newer versions of Pillow turn a TIFF themselves; size and pixels agree with those of the same picture as a PNG."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, plain = tmp_path / name, tmp_path / "plain.png"
    stripes(64, 32).save(path, "TIFF", exif=exif)
    stripes(64, 32).save(plain, "PNG", exif=exif)
    expected = open_picture(plain)
    assert picture_size(path) == expected.size == open_picture(path).size
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(expected))
    with open(path, "rb") as file:
        assert look_at(path, file)[0] == expected.size


def test_numbers_whose_meaning_nobody_knows_are_refused_and_not_shown_black(tmp_path):
    path = tmp_path / "x.tif"
    for values in (np.full((8, 8), 0.5, np.float32), np.full((8, 8), 2**30, np.int32)):
        Image.fromarray(values).save(path)
        with pytest.raises(
            AtelierError, match=r"x\.tif: this picture cannot be read \(its numbers .*save it with 8 or 16 bits\)"
        ):
            open_picture(path)


def test_a_format_that_starts_other_programs_is_not_opened_whatever_its_name_is(tmp_path):
    path = tmp_path / "x.png"
    stripes().save(path, "EPS")
    with pytest.raises(AtelierError, match=r"x\.png: this picture cannot be read \(it is no picture in a known format\)"):
        picture_size(path)


def test_a_lower_limit_of_another_node_pack_is_not_called_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "x.png"
    stripes().save(path)
    with pytest.raises(AtelierError, match=r"Pillow, as it is set here, refuses so many pixels"):
        picture_size(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phones_heic_is_upright_once(tmp_path, orientation):
    """Its pixels are turned by the container, and its EXIF data speak of it as well."""
    heif = pytest.importorskip("pillow_heif")
    stored = Image.new("RGB", (64, 32), "red")
    stored.paste("blue", (32, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "IMG_1.HEIC"
    heif.from_pillow(stored).save(path, quality=100, exif=exif.tobytes())
    stored.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(stored)
    seen = open_picture(path)
    assert seen.size == upright.size == picture_size(path)
    assert np.abs(np.asarray(seen, int) - np.asarray(upright, int)).mean() < 4


@pytest.mark.parametrize(("brand", "package"), [(b"heic", "pillow-heif"), (b"mif1", "pillow-heif"), (b"avif", "Pillow 11.3")])
@pytest.mark.parametrize("name", ["a.jpg", "a.heic"])
def test_what_is_missing_for_a_picture_is_said_whatever_its_name(tmp_path, monkeypatch, brand, package, name):
    monkeypatch.setattr(images, "EXTENSIONS", EXTENSIONS - HEIF - {".avif"})
    monkeypatch.setattr(images, "READ", tuple(kind for kind in images.READ if kind != "AVIF"))
    path = tmp_path / name
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 400)
    with pytest.raises(AtelierError, match=rf"{name}: .* needs .*{package}"):
        check_picture(path)


def test_heic_is_read_where_pillow_heif_is_and_pillow_itself_learns_nothing(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "x.heic"
    heif.from_pillow(stripes()).save(path, quality=95)
    assert ".heic" in EXTENSIONS and picture_size(path) == (64, 32)
    check_picture(path)
    image = open_picture(path)
    assert image.mode == "RGB" and np.allclose(image.getpixel((8, 16)), (255, 0, 0), atol=16)
    assert "HEIF" not in Image.OPEN
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(AtelierError, match=r"x\.heic: this picture cannot be read"):
        check_picture(path)


@pytest.mark.skipif(".avif" not in EXTENSIONS, reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("major", [b"mif1", b"msf1"])
def test_an_avif_picture_may_call_itself_by_the_name_of_the_container(tmp_path, monkeypatch, major):
    path = tmp_path / "a.avif"
    Image.new("RGB", (16, 8), "red").save(path)
    data = path.read_bytes()
    assert b"avif" in data[16:64]
    path.write_bytes(data[:8] + major + data[12:])
    monkeypatch.setattr(images, "EXTENSIONS", EXTENSIONS | HEIF)  # also where HEIC is read
    assert open_picture(path).size == (16, 8)
