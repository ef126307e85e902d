"""PNG files whose side information Pillow refuses although every pixel is sound: large texts and profiles, and damaged ones.

Pillow limits what a text or profile unpacks to, by numbers that hold for the whole process. They protect the host and are left
alone; what exceeds them is taken out of the stream before Pillow sees it, as viewers pass over what they don't understand.
"""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
LARGEST = 64 * 2**20
"""Bytes of a chunk, and of an unpacked colour profile; more is not looked at."""


def without_what_pillow_refuses(file: BinaryIO) -> tuple[BinaryIO, bytes | None]:
    """(the picture, colour profile that was taken out of it): ``file`` itself, if it is no PNG or nothing has to go."""
    file.seek(0)
    if file.read(8) != SIGNATURE:
        return file, None
    end = file.seek(0, io.SEEK_END)
    dropped, profile = _refused(file, end)
    if not dropped:
        return file, None
    rest, place = io.BytesIO(), 0
    for start, stop in (*dropped, (end, end)):
        file.seek(place)
        rest.write(file.read(start - place))
        place = stop
    return rest, profile


def _refused(file: BinaryIO, end: int) -> tuple[list[tuple[int, int]], bytes | None]:
    """(places of chunks that have to go, unpacked profile where that is one of them)."""
    from PIL import PngImagePlugin

    each, together = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    dropped: list[tuple[int, int]] = []
    profile, place, texts, is_data = None, 8, 0, False
    while place + 12 <= end:
        file.seek(place)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        stop = place + 12 + length
        if kind == b"IEND" or stop > end:
            break
        is_data |= kind == b"IDAT"
        if kind[0] & 0x20 and length <= LARGEST and (kind in (*TEXTS, b"iCCP") or not is_data):
            data, sum_ = file.read(length), file.read(4)
            size = _text_size(kind, data, each) if kind in TEXTS else 0
            bad = not is_data and zlib.crc32(kind + data).to_bytes(4, "big") != sum_
            if kind == b"iCCP" and not bad:
                bad, profile = _profile(data, each)
            if bad or size is None or texts + size > together:
                dropped.append((place, stop))
            else:
                texts += size
        elif kind in TEXTS:
            dropped.append((place, stop))
        place = stop
    return dropped, profile


def _text_size(kind: bytes, data: bytes, limit: int) -> int | None:
    """Bytes of the text once unpacked; None for what cannot be unpacked, or not within ``limit``."""
    if kind == b"tEXt":
        return len(data)
    _, _, rest = data.partition(b"\0")
    if kind == b"zTXt":
        return _unpacked_size(rest[1:], limit) if rest[:1] in (b"", b"\0") else None
    if rest[:1] in (b"", b"\0"):
        return len(data)
    return _unpacked_size(rest[2:].split(b"\0", 2)[-1], limit)


def _unpacked_size(packed: bytes, limit: int) -> int | None:
    unpacked = _unpacked(packed, limit)
    return None if unpacked is None else len(unpacked)


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """At most ``limit`` bytes; None for more, or for what is damaged."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, limit)
    except zlib.error:
        return None
    return None if unpacker.unconsumed_tail else data


def _profile(data: bytes, limit: int) -> tuple[bool, bytes | None]:
    """(whether the chunk has to go, the profile if it is one that is only large)."""
    _, _, rest = data.partition(b"\0")
    if rest[:1] != b"\0":
        return True, None
    if _unpacked(rest[1:], limit) is not None:
        return False, None
    return True, _unpacked(rest[1:], LARGEST)
