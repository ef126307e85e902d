"""Reading pictures as a person sees them: upright, in sRGB, 8 bits, on white.

The formats that matter are decoded by Pillow, which ComfyUI has loaded already.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from ..errors import AtelierError, NotFinite
from ..files import Unreadable, open_plain
from ..tensors.finite import is_finite
from .films import is_film, middle_frame
from .png_chunks import without_what_pillow_refuses

HEIF = frozenset({".heic", ".heif", ".hif"})
COMMON = ("png", "jpg", "webp", "bmp", "tif", "gif")
EXTENSIONS = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".tga", ".ppm",
    ".pgm", ".pbm", ".pnm",
    *((".avif",) if features.check("avif") else ()),
    *((".jp2", ".j2k", ".jpx", ".jpf") if features.check("jpg_2000") else ()),
    *(HEIF if find_spec("pillow_heif") else ()),
})  # fmt: skip
"""Endings of the pictures that are read."""
FORMATS = ", ".join((*COMMON, *sorted({"avif", "heic"} & {extension[1:] for extension in EXTENSIONS})))
"""The usual ones of them, for a sentence."""
# What Pillow may take a file for, whatever its name: others hand it to programs outside (PostScript) or are no pictures.
READ = (
    "PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM",
    *(("AVIF",) if features.check("avif") else ()), *(("JPEG2000",) if features.check("jpg_2000") else ()),
)  # fmt: skip
# Pillow's own limit can be switched off by any other node pack, so it is checked here as well; the number is Pillow's.
MAX_PIXELS = 178_956_970
EXIF_ORIENTATION = 0x0112
TIFF_WIDTH, TIFF_HEIGHT = 256, 257
HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
BOX = 256
"""Bytes at a file's beginning, in which an ftyp box is looked at."""
# What a picture that cannot be read was meant to be.
MARKS = ((b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"BM", "BMP"), (b"GIF8", "GIF"))
# Formats in which several pictures are frames or pages; in an MPO the others are depth or brightness of the first.
SERIES = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")
UNSAID = 100.0
"""Milliseconds that programs show a frame of an animated picture which does not say how long."""
JPEG_END = b"\xff\xd9"
# Bytes at a JPEG's end in which its end mark is looked for.
TAIL = 4096
# What Pillow decodes at a fraction of its size where that is enough.
REDUCIBLE = ("JPEG", "MPO")


def _broken(path: Path, reason: object) -> AtelierError:
    return AtelierError(f"{path}: this picture cannot be read ({reason}). Repair it, or take it out of the folder.")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What Pillow says while it decodes, as a sentence about the file."""
    try:
        yield
    except Exception as error:  # of many kinds, whatever in the file is damaged
        raise _broken(path, error) from error


@contextmanager
def opened(path: Path, file: BinaryIO | None = None) -> Iterator[Image.Image]:
    """The picture with only its header read, from ``file`` where that is open already; refuses what would not fit into memory."""
    with _source(path, file) as source:
        if source.seek(0, os.SEEK_END) == 0:
            raise _broken(path, "the file is empty, it has 0 bytes")
        stream, profile = without_what_pillow_refuses(source)
        with _identified(path, stream) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path)
            if profile is not None:
                image.info["icc_profile"] = profile
            yield image


def _source(path: Path, file: BinaryIO | None) -> AbstractContextManager[BinaryIO]:
    if file is not None:
        return nullcontext(file)
    try:
        return open_plain(path)
    except (OSError, Unreadable) as error:
        raise _broken(path, error) from error


def _identified(path: Path, stream: BinaryIO) -> Image.Image:
    stream.seek(0)
    head = stream.read(BOX)
    try:
        if _boxed(head) == "HEIC" and ".heic" in EXTENSIONS:
            return _heif(path, stream)
        # The plugin for TGA has no mark to go by and takes many files for one.
        return Image.open(stream, formats=(*READ, "TGA") if path.suffix.lower() == ".tga" else READ)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, error) from error
    except UnidentifiedImageError as error:
        if (why := _needs(head)) is not None:
            raise _broken(path, why) from error
        known = next((name for mark, name in MARKS if head.startswith(mark)), None)
        kind = (
            f"damaged, or a kind of {known} that is not understood; try to save it as PNG"
            if known
            else "it is no picture in a known format"
        )
        raise _broken(path, kind) from error
    except Exception as error:  # of many kinds, whatever in the file is damaged
        raise _broken(path, error) from error


def _boxed(head: bytes) -> str:
    """Which kind of picture in boxes begins so, "HEIC" or "AVIF"; empty for none of them."""
    if head[4:8] != b"ftyp":
        return ""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    major, compatible = head[8:12], {head[at : at + 4] for at in range(16, size - 3, 4)}
    if major in AVIF_BRANDS or (major in (b"mif1", b"msf1") and compatible & AVIF_BRANDS):  # which both kinds may call themselves
        return "AVIF"
    return "HEIC" if major in HEIF_BRANDS else ""


def _needs(head: bytes) -> str | None:
    """What is missing here for a picture of this kind, whatever its name: phones call HEIC pictures .jpg, too."""
    kind = _boxed(head)
    if kind == "HEIC" and ".heic" not in EXTENSIONS:
        return "it is a HEIC picture, which needs the Python package pillow-heif; install it, or save the picture as PNG or JPEG"
    if kind == "AVIF" and ".avif" not in EXTENSIONS:
        return "it is an AVIF picture, which needs Pillow 11.3 or newer; update it, or save the picture as PNG or JPEG"
    return None


def _heif(path: Path, stream: BinaryIO) -> Image.Image:
    """Through pillow-heif, without making it known to Pillow for the whole process."""
    import pillow_heif  # type: ignore[import-not-found,import-untyped,unused-ignore]  # only where it is installed

    stream.seek(0)
    found = pillow_heif.open_heif(stream, convert_hdr_to_8bit=True)
    if found.size[0] * found.size[1] > MAX_PIXELS:
        raise _too_large(path)
    image: Image.Image = found.to_pillow()
    image.format = "HEIF"
    return image


def _too_large(path: Path, said: Exception | None = None) -> AtelierError:
    """``said``: Pillow's own refusal, whose limit another node pack may have changed."""
    limit = Image.MAX_IMAGE_PIXELS
    if said is not None and limit is not None and 2 * limit < MAX_PIXELS:
        return _broken(path, f"Pillow, as it is set here, refuses so many pixels: {said}")
    return AtelierError(
        f"{path}: this picture has more than {MAX_PIXELS // 1_000_000} million pixels. Shrink it, or take it out of the folder."
    )


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; damaged EXIF data count as upright (1)."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after EXIF rotation, of a picture whose pixels are not loaded yet."""
    width, height = image.size
    if image.format == "TIFF":  # which newer versions of Pillow turn by themselves, so that the size may be turned already
        tags = getattr(image, "tag_v2", {})
        width, height = int(tags.get(TIFF_WIDTH, width)), int(tags.get(TIFF_HEIGHT, height))
    return (height, width) if 5 <= orientation_of(image) <= 8 else (width, height)


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the header alone."""
    with opened(path) as image:
        return _upright_size(image)


def check_picture(path: Path) -> None:
    """AtelierError naming the file if it is no picture or was cut off; decodes it only where its structure leaves a doubt."""
    try:
        file = open_plain(path)
    except (OSError, Unreadable) as error:
        raise _broken(path, error) from error
    with file:
        if not _structure(path, file)[1]:
            decoded(path, file)


def _structure(path: Path, file: BinaryIO) -> tuple[str | None, bool]:
    """(format, whether its structure says that nothing is missing), without decoding it."""
    with opened(path, file) as image:
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

    Of a film it is a frame from its middle. Raises AtelierError naming the file if it is broken, or too large to be safe.
    """
    return middle_frame(path) if is_film(path) else decoded(path)


def timing_of(path: Path) -> tuple[int, Fraction]:
    """(frames, frames a second on average) of an animated picture; pages of a TIFF are none, so that it counts as one frame."""
    with opened(path) as image, naming(path):
        if image.format == "TIFF" or not getattr(image, "is_animated", False):
            return 1, Fraction(1)
        shown = 0.0
        for number in range(frames := int(getattr(image, "n_frames", 1))):
            image.seek(number)
            image.load()
            shown += float(image.info.get("duration") or UNSAID)
        return frames, Fraction(round(1000 * frames), max(1, round(shown)))


def frames_of_picture(path: Path, places: Sequence[int]) -> Iterator[Image.Image]:
    """Those frames of an animated picture, from 0 and ascending, as ``open_picture`` has the first."""
    with opened(path) as image, naming(path):
        for place in places:
            image.seek(place)
            frame = image.copy()
            frame.info = dict(image.info)
            yield _finished(frame)


def decoded(path: Path, file: BinaryIO | None = None) -> Image.Image:
    with opened(path, file) as image, naming(path):
        return _finished(image)


def _finished(image: Image.Image) -> Image.Image:
    image.load()
    upright = ImageOps.exif_transpose(image) if orientation_of(image) != 1 else image
    return _on_white(_to_srgb(_to_8_bit(upright)))


def look_at(path: Path, file: BinaryIO, side: int = 64) -> tuple[tuple[int, int], Image.Image, bool]:
    """(width, height) after EXIF rotation; a small picture: RGB on white, as it lies, colours as stored; whether
    further frames or pages stand behind it.

    ``file`` is the open file or its bytes. The small picture has at least ``side`` pixels on its shorter side if the picture has
    them. The picture is decoded once, a JPEG at a fraction of its size; only a JPEG whose structure leaves a doubt is decoded
    whole as well. AtelierError naming the file if it is broken, cut off or too large.
    """
    kind, whole = _structure(path, file)
    if not whole and kind in REDUCIBLE:
        decoded(path, file)
        whole = True
    with opened(path, file) as image, naming(path):
        several = kind in SERIES and bool(getattr(image, "is_animated", False))
        size = _upright_size(image)
        image.draft("RGB", (side, side))
        image.load()
        if kind == "PNG":  # whose orientation may stand behind the pixels
            size = _upright_size(image)
        if not whole:
            _finished(image)
        return size, _small(image, side), several


def _small(image: Image.Image, side: int) -> Image.Image:
    small = _to_8_bit(image)
    if max(small.size) > 4 * side:
        small.thumbnail((4 * side, 4 * side), Image.Resampling.BOX)
    return _on_white(small.convert("RGBA") if "transparency" in small.info else small)


def alpha_of(path: Path) -> Image.Image | None:
    """The picture's transparency as grey (255 is opaque), upright; None for a picture that has none."""
    with opened(path) as image, naming(path):
        image.load()
        upright = ImageOps.exif_transpose(image) if orientation_of(image) != 1 else image
        opaque = not ({"A", "a"} & set(upright.getbands()) or "transparency" in upright.info)
        return None if opaque else upright.convert("RGBA").getchannel("A")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8; ValueError for numbers of which nobody knows what they mean in light."""
    if image.mode == "F":
        raise ValueError("its numbers are floating-point; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise ValueError("its numbers go beyond 16 bits; save it with 8 or 16 bits")
    values /= 257.0
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


def cut(
    image: Image.Image, scaled: tuple[int, int], box: tuple[int, int, int, int], flipped: bool = False
) -> torch.Tensor:  # fmt: skip
    """The part ``box`` (left, top, right, bottom) of the picture as if scaled to ``scaled`` (width, height).

    Returns uint8 (H, W, 3), (H, W) for a grey picture; ``flipped``: mirrored. Only the part that is kept is resampled. Both ways
    use Lanczos: Pillow widens the kernel with the scale, so shrinking is antialiased, and near scale 1 it stays even where
    Pillow's box filter would drop or double pixels; a strong reduction first averages whole blocks (``reducing_gap``).
    """
    left, top, right, bottom = box
    x, y = image.width / scaled[0], image.height / scaled[1]
    part = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    size = (right - left, bottom - top)
    resized = image if image.size == size == scaled else image.resize(size, Image.Resampling.LANCZOS, part, reducing_gap=3.0)
    levels = np.asarray(resized)
    # No operation of torch's: in a thread beside the encoder it would bring threads of its own.
    return torch.from_numpy(np.array(levels[:, ::-1] if flipped else levels))


def to_unit(levels: Tensor) -> Tensor:
    """8-bit levels as float32 in 0..1, as in ComfyUI's IMAGE, on whatever device they lie."""
    # By a tensor: a GPU would multiply by the reciprocal of a plain number, which rounds otherwise than a CPU divides.
    return levels.float().div_(torch.full((), 255.0, device=levels.device))


def to_picture(pixels: Tensor) -> Image.Image:
    """(H, W, 3) in 0..1 -> an 8-bit picture, rounded as the stock SaveImage does; NotFinite for what is no picture."""
    if not is_finite(pixels):
        raise NotFinite("vae: the picture has values that are NaN or infinite. Start ComfyUI with --fp32-vae.")
    return Image.fromarray(np.clip(255.0 * pixels.float().cpu().numpy(), 0, 255).astype(np.uint8))
