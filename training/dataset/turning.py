"""Pictures turned by quarters without loss: by the orientation in their EXIF data where the format has them, so that no pixel is
encoded anew, and else by their pixels in formats that lose nothing. What was turned is compared with what it was before.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import SubsetConfig
from ..errors import AtelierError
from ..files import open_plain, write_all
from .captions import some
from .films import is_film
from .images import EXIF_ORIENTATION, SERIES, decoded, naming, opened, orientation_of
from .listing import FoundFolder, refuse_outside
from .put_aside import chosen, pictures_of, unused_films

CLOCKWISE = {1: 6, 6: 3, 3: 8, 8: 1, 2: 7, 7: 4, 4: 5, 5: 2}
"""EXIF orientation -> that of the same picture turned by a quarter."""
EXIF = b"Exif\0\0"
SHORT = 3
"""Type of a number of 16 bits in a TIFF directory."""
ENTRY = 12
"""Bytes of an entry there."""
APP0, APP1, START_OF_SCAN = 0xE0, 0xE1, 0xDA
HAS_EXIF, HAS_ALPHA = 0x08, 0x10
"""Flags of an extended WebP."""
BY_PIXELS = ("BMP", "DIB", "GIF", "PPM", "TGA")


def turn(folder: Path, names: Sequence[str], quarters: int, config: SubsetConfig, root: Path) -> None:
    """Turns pictures clockwise, and their masks and control pictures with them; all, or none. A link's own file is turned.

    AtelierError naming a picture that is not there, one that cannot be turned without loss or written, or one that shares a mask
    or a control picture with another.
    """
    known = pictures_of(folder, config, root)
    leaving = chosen(names, known, folder)
    films = [name for name, (path, _) in leaving.items() if is_film(path)]
    if films:
        raise AtelierError(
            f"pictures: {some(films)}: films are not turned here, since every frame would have to be encoded anew. Turn them "
            "with a program for films, and bring them again."
        )
    owners = {**known, **unused_films(folder, config, root)}
    files = {name: _files(path, found, root) for name, (path, found) in owners.items()}
    turned = {file: turned_file(file, quarters) for name in leaving for file in dict.fromkeys(files[name])}
    shared = [name for name, own in files.items() if name not in leaving and not turned.keys().isdisjoint(own)]
    if shared:
        raise AtelierError(
            f"pictures: {some(shared)} has the same mask or control picture, which would be turned as well. Rename one "
            "of the two."
        )
    _write(turned)


def _files(picture: Path, found: FoundFolder, root: Path) -> list[Path]:
    """The files that turn with a picture, its own first, where links to them lead."""
    every = (picture, *found.drawn_for(picture))
    for path in every:
        refuse_outside(path, root.resolve())
    return [Path(os.path.realpath(path)) for path in every]


def _write(turned: Mapping[Path, bytes]) -> None:
    """All files are written, or none: what was written before one failed is put back."""
    before, done = {path: path.read_bytes() for path in turned}, list[Path]()
    try:
        write_all(turned, done.append)
    except (OSError, AtelierError) as error:
        kept = []
        for path in done:
            try:
                write_all({path: before[path]}, lambda _: None)
            except (OSError, AtelierError):
                kept.append(path.name)
        if kept:
            raise AtelierError(
                f"pictures: turning broke off ({error}). {some(kept)} had been turned by then, the others not."
            ) from error
        if isinstance(error, OSError):
            raise AtelierError(
                f"{error.filename or 'pictures'}: this cannot be written ({error.strerror}), so nothing was turned. Close it "
                "elsewhere, or allow writing in this folder."
            ) from error
        raise


def turned_file(path: Path, quarters: int) -> bytes:
    """The file's bytes with the picture turned clockwise; AtelierError naming the file if that cannot be done without loss."""
    with open_plain(path) as file:
        data = file.read()
    with opened(path, io.BytesIO(data)) as image, naming(path):
        kind, size, several = image.format or "", image.size, getattr(image, "n_frames", 1) > 1
        value = orientation_of(image)
        image.load()
        if kind == "PNG":  # whose orientation may stand behind the pixels; newer versions of Pillow forget that of a TIFF
            value = orientation_of(image)
        has_alpha = "A" in image.getbands()
    if several and kind in SERIES:
        raise _refusal(path, "it has several frames or pages")
    for _ in range(quarters % 4):
        value = CLOCKWISE.get(value, CLOCKWISE[1])
    ways: dict[str, Callable[[], bytes]] = {
        "JPEG": lambda: _jpeg(data, value), "MPO": lambda: _jpeg(data, value), "PNG": lambda: _png(data, value),
        "WEBP": lambda: _webp(data, value, size, has_alpha), "TIFF": lambda: with_orientation(data, value),
        **{name: lambda: _pixels(path, data, quarters) for name in BY_PIXELS},
    }  # fmt: skip
    if kind not in ways:
        raise _refusal(path, f"{kind or 'this'} pictures would have to be encoded anew")
    try:
        out = ways[kind]()
        is_same = np.array_equal(np.rot90(_seen(path, data), -quarters), _seen(path, out))
    except (struct.error, IndexError, ValueError) as error:
        raise _refusal(path, f"its data about itself are damaged: {error}") from error
    if not is_same:
        raise _refusal(path, "something would have been lost")
    return out


def _refusal(path: Path, why: str) -> AtelierError:
    return AtelierError(f"{path}: this picture cannot be turned without loss ({why}). Turn it elsewhere, and save it as PNG.")


def _seen(path: Path, data: bytes) -> np.ndarray:
    """The picture as it is trained on."""
    return np.asarray(decoded(path, io.BytesIO(data)))


def with_orientation(tiff: bytes, value: int) -> bytes:
    """TIFF data, which EXIF data are as well, with this orientation; all else stays where it is. struct.error if damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise struct.error("no TIFF directory")
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (number,) = struct.unpack_from(f"{order}H", tiff, start)
    entries = [tiff[start + 2 + ENTRY * i :][:ENTRY] for i in range(number)]
    (following,) = struct.unpack_from(f"{order}I", tiff, start + 2 + ENTRY * number)
    own = struct.pack(f"{order}HHIHH", EXIF_ORIENTATION, SHORT, 1, value, 0)
    tags = [struct.unpack_from(f"{order}H", entry)[0] for entry in entries]
    if EXIF_ORIENTATION in tags:
        at = start + 2 + ENTRY * tags.index(EXIF_ORIENTATION)
        return tiff[:at] + own + tiff[at + ENTRY :]
    entries = sorted([*entries, own], key=lambda entry: struct.unpack_from(f"{order}H", entry)[0])
    data = tiff + b"\0" * (len(tiff) % 2)  # the directory moves to the end, and what it points to stays
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", following)
    return data[:4] + struct.pack(f"{order}I", len(data)) + data[8:] + directory


def _fresh(value: int) -> bytes:
    """EXIF data that hold an orientation and nothing else."""
    return with_orientation(struct.pack("<4sIHI", b"II*\0", 8, 0, 0), value)


def _jpeg(data: bytes, value: int) -> bytes:
    at = place = 2
    while data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == APP1 and data[at + 4 : at + 10] == EXIF:
            return data[:at] + _segment(with_orientation(data[at + 10 : end], value)) + data[end:]
        place = end if marker == APP0 and at == 2 else place
        at = end
    return data[:place] + _segment(_fresh(value)) + data[place:]


def _segment(tiff: bytes) -> bytes:
    if len(tiff) > 65_535 - 2 - len(EXIF):
        raise ValueError("there is no room for an orientation")
    return bytes((0xFF, APP1)) + struct.pack(">H", 2 + len(EXIF) + len(tiff)) + EXIF + tiff


def _png(data: bytes, value: int) -> bytes:
    out, own = [data[:8]], _fresh(value)
    chunks = []
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at:end]))
        at = end
    for kind, chunk in chunks:
        if kind == b"eXIf":
            own = with_orientation(chunk[8:-4].removeprefix(EXIF), value)
    # In front of the pixels, where every reader has it in time.
    body = b"eXIf" + own
    exif = struct.pack(">I", len(own)) + body + struct.pack(">I", zlib.crc32(body))
    for kind, chunk in chunks:
        out += [] if kind == b"eXIf" else [chunk, exif] if kind == b"IHDR" else [chunk]
    return b"".join([*out, data[at:]])


def _webp(data: bytes, value: int, size: tuple[int, int], has_alpha: bool) -> bytes:
    chunks = list(_riff(data))
    flags = chunks[0][1][0] if chunks[0][0] == b"VP8X" else HAS_ALPHA * has_alpha
    sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
    head = bytes((flags | HAS_EXIF, 0, 0, 0)) + sides
    old = next((content for kind, content in chunks if kind == b"EXIF"), None)
    exif = _fresh(value) if old is None else with_orientation(old.removeprefix(EXIF), value)
    kept = [(kind, content) for kind, content in chunks if kind not in (b"VP8X", b"EXIF")]
    # The specification wants EXIF behind the pixels and in front of XMP.
    order = {b"XMP ": 2}
    kept = sorted([*kept, (b"EXIF", exif)], key=lambda one: order.get(one[0], 1 if one[0] == b"EXIF" else 0))
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        for kind, content in [(b"VP8X", head), *kept]
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _pixels(path: Path, data: bytes, quarters: int) -> bytes:
    """Of formats without EXIF data, which lose nothing."""
    ways = (None, Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90)
    way, buffer = ways[quarters % 4], io.BytesIO()
    with opened(path, io.BytesIO(data)) as image, naming(path):
        image.load()
        turned = image if way is None else image.transpose(way)
        kept = {name: image.info[name] for name in ("dpi", "transparency", "comment") if name in image.info}
        turned.save(buffer, image.format, **kept)
    return buffer.getvalue()
