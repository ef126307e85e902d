"""Reading pictures as a person sees them: upright, in sRGB, 8 bits, on white.

The formats that matter are decoded by Pillow, which ComfyUI has loaded already.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from ..errors import AtelierError, NotFinite
from ..files import Unreadable, is_file, open_plain
from ..tensors.finite import is_finite

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", *((".avif",) if features.check("avif") else ())})
# Pillow's own limit can be switched off by any other node pack, so it is checked here as well; the number is Pillow's.
MAX_PIXELS = 178_956_970
EXIF_ORIENTATION = 0x0112
JPEG_END = b"\xff\xd9"
# Bytes at a JPEG's end in which its end mark is looked for.
TAIL = 4096
# What Pillow decodes at a fraction of its size where that is enough.
REDUCIBLE = ("JPEG", "MPO")


def _broken(path: Path, reason: object) -> AtelierError:
    return AtelierError(f"{path}: this picture cannot be read ({reason}). Repair it, or take it out of the folder.")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What Pillow says while it decodes, as a sentence about the file."""
    try:
        yield
    except Exception as error:  # of many kinds, whatever in the file is damaged
        raise _broken(path, error) from error


def _open(path: Path, file: BinaryIO | None = None) -> Image.Image:
    """The picture with only its header read, from ``file`` where that is open already; refuses what would not fit into memory."""
    if file is None and os.path.exists(path) and not is_file(path):  # opening a pipe would wait for ever
        raise _broken(path, "it is no plain file")
    try:
        image = Image.open(file or path)
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except UnidentifiedImageError as error:
        raise _broken(path, "it is no picture in a known format") from error
    except Exception as error:  # of many kinds, whatever in the file is damaged
        raise _broken(path, error) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path)
    return image


def _too_large(path: Path) -> AtelierError:
    return AtelierError(
        f"{path}: this picture has more than {MAX_PIXELS // 1_000_000} million pixels. Shrink it, or take it out of the folder."
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; damaged EXIF data count as upright."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the header alone."""
    with _open(path) as image:
        width, height = image.size
        return (height, width) if 5 <= _orientation(image) <= 8 else (width, height)


def check_picture(path: Path) -> None:
    """AtelierError naming the file if it is no picture or was cut off; decodes it only where its structure leaves a doubt."""
    try:
        file = open_plain(path)
    except (OSError, Unreadable) as error:
        raise _broken(path, error) from error
    with file:
        if not _structure(path, file)[1]:
            _decode(path, file)


def _structure(path: Path, file: BinaryIO) -> tuple[str | None, bool]:
    """(format, whether its structure says that nothing is missing), without decoding it."""
    with _open(path, file) as image:
        kind = image.format
        whole = kind == "PNG"
        try:
            if whole:
                image.verify()
        except Exception:
            whole = False
    if kind in ("JPEG", "WEBP"):
        file.seek(0)
        head = file.read(12)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - TAIL))
        # Phones append whole films to a JPEG, so a missing end mark is a doubt and no proof.
        whole = JPEG_END in file.read() if kind == "JPEG" else int.from_bytes(head[4:8], "little") + 8 <= length
    return kind, whole


def open_picture(path: Path) -> Image.Image:
    """The picture in RGB: EXIF rotation applied, ICC profile converted to sRGB, 16-bit scaled, alpha laid on white, first frame.

    Raises AtelierError naming the file if it is broken, or too large to be safe.
    """
    return _decode(path)


def _decode(path: Path, file: BinaryIO | None = None) -> Image.Image:
    with _open(path, file) as image, _naming(path):
        return _finished(image)


def _finished(image: Image.Image) -> Image.Image:
    image.load()
    upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
    return _on_white(_to_srgb(_to_8_bit(upright)))


def look_at(path: Path, file: BinaryIO, side: int = 64) -> tuple[tuple[int, int], Image.Image]:
    """(width, height) after EXIF rotation, and a small picture: RGB on white, as it lies, colours as stored.

    ``file`` is the open file or its bytes. The small picture has at least ``side`` pixels on its shorter side if the picture has
    them. The picture is decoded once, a JPEG at a fraction of its size; only a JPEG whose structure leaves a doubt is decoded
    whole as well. AtelierError naming the file if it is broken, cut off or too large.
    """
    kind, whole = _structure(path, file)
    if not whole and kind in REDUCIBLE:
        _decode(path, file)
        whole = True
    with _open(path, file) as image, _naming(path):
        width, height = image.size
        image.draft("RGB", (side, side))
        if kind == "PNG":  # whose orientation may stand behind the pixels
            image.load()
        turned = 5 <= _orientation(image) <= 8
        image.load()
        if not whole:
            _finished(image)
        return (height, width) if turned else (width, height), _small(image, side)


def _small(image: Image.Image, side: int) -> Image.Image:
    small = _to_8_bit(image)
    if max(small.size) > 4 * side:
        small.thumbnail((4 * side, 4 * side), Image.Resampling.BOX)
    return _on_white(small.convert("RGBA") if "transparency" in small.info else small)


def alpha_of(path: Path) -> Image.Image | None:
    """The picture's transparency as grey (255 is opaque), upright; None for a picture that has none."""
    with _open(path) as image, _naming(path):
        image.load()
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        opaque = not ({"A", "a"} & set(upright.getbands()) or "transparency" in upright.info)
        return None if opaque else upright.convert("RGBA").getchannel("A")


def _to_8_bit(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64) / 257.0
    grey = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    grey.info = dict(image.info)
    # A grey level named as transparent is on the 16-bit scale and has no exact twin in 8 bits.
    grey.info.pop("transparency", None)
    return grey


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colours converted by the embedded profile; a missing, damaged or mismatching profile means sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode == "P" or (image.mode in ("1", "L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if not profile:
        return image
    from PIL import ImageCms

    alpha = image.getchannel("A") if "A" in image.getbands() else None
    colours = image.convert("L" if image.mode == "LA" else "RGB") if alpha is not None else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _on_white(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "a" in image.getbands():
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image, scaled: tuple[int, int], box: tuple[int, int, int, int]) -> torch.Tensor:
    """The part ``box`` (left, top, right, bottom) of the picture as if scaled to ``scaled`` (width, height).

    Returns float32 (H, W, 3) in 0..1, ComfyUI's layout; (H, W) for a grey picture. Only the part that is kept is resampled. Both
    ways use Lanczos: Pillow widens the kernel with the scale, so shrinking is antialiased, and near scale 1 it stays even where
    Pillow's box filter would drop or double pixels; a strong reduction first averages whole blocks (``reducing_gap``).
    """
    left, top, right, bottom = box
    x, y = image.width / scaled[0], image.height / scaled[1]
    part = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    size = (right - left, bottom - top)
    resized = image if image.size == size == scaled else image.resize(size, Image.Resampling.LANCZOS, part, reducing_gap=3.0)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255.0)


def to_picture(pixels: Tensor) -> Image.Image:
    """(H, W, 3) in 0..1 -> an 8-bit picture, rounded as the stock SaveImage does; NotFinite for what is no picture."""
    if not is_finite(pixels):
        raise NotFinite("vae: the picture has values that are NaN or infinite. Start ComfyUI with --fp32-vae.")
    return Image.fromarray(np.clip(255.0 * pixels.float().cpu().numpy(), 0, 255).astype(np.uint8))
