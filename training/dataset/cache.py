"""Tensors on the disk, found by what they were made from.

One safetensors file per key, so that two runs can share a folder: a file appears whole or not at all, and a file that was
damaged or removed meanwhile is simply made again. Nothing that is NaN or infinite is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from ..errors import AtelierError, NotFinite
from ..files import Serialised, open_plain, parse_json, remove_longest_unused
from ..tensors.finite import first_lost
from ..tensors.safetensors_header import LIMIT

CACHE_LIMIT = 20 * 2**30
"""Bytes on disk for latents and text encodings; the longest unused go first."""
KEY = re.compile(r"[0-9a-f]{16,128}")
# After a clean-up the cache has this share of its limit, so that the next file doesn't start another one.
KEPT_SHARE = 0.9
MOST_HEADER = 1 << 20
# A temporary file this old (seconds) belongs to a run that died.
STALE = 3600.0


def cache_key(*parts: Any) -> str:
    """SHA-256 (hex) of JSON values (texts, numbers, None, and tuples, lists or dicts of them)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _data(file: bytes) -> memoryview:
    """A safetensors file's tensor bytes (all behind the 8-byte length and the JSON header)."""
    return memoryview(file)[8 + int.from_bytes(file[:8], "little") :]


def _stated(key: str, entries: Mapping[str, Any], data: memoryview) -> dict[str, str]:
    """What the file of ``key`` says of itself: its name, and CRC-32 of its tensors' bytes and of what lists them."""
    listed = json.dumps(entries, sort_keys=True).encode()
    return {"key": key, "crc32": f"{zlib.crc32(data):08x}", "header": f"{zlib.crc32(listed):08x}"}


FINITE = {"finite": "yes"}
"""What a file says as well whose numbers were looked at before they were stored; earlier versions did not look."""


def _read(path: Path, key: str) -> tuple[bytes, bool]:
    """The file of ``key``, and whether its numbers were looked at before they were stored.

    ValueError if its header does not name that key and account for all its bytes, OSError without one.
    """
    with open_plain(path) as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LIMIT, size - 8):
            raise ValueError("header")
        header = parse_json(file.read(length))
        try:
            stated = header.pop("__metadata__")
            end = max((row["data_offsets"][1] for row in header.values()), default=0)
            fits = stated["key"] == key and 8 + length + end == size
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError("header") from error
        if not fits:
            raise ValueError("length")
        file.seek(0)
        whole = file.read()
    expected = _stated(key, header, _data(whole))
    looked_at = {name: stated.get(name) for name in FINITE} == FINITE
    said = {name: text for name, text in stated.items() if name not in FINITE}
    if said not in (expected, {name: expected[name] for name in ("key", "crc32")}):  # earlier versions had no third
        raise ValueError("checksum")
    return whole, looked_at


def _header(file: bytes) -> bytes:
    return file[8 : 8 + int.from_bytes(file[:8], "little")]


class TensorCache:
    """Dictionaries of tensors in ``folder``, at most ``limit_bytes`` in all, the longest unused removed first."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes
        self._bytes: int | None = None

    def path(self, key: str) -> Path:
        """Where the tensors of ``key`` are kept."""
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a cache key")
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether tensors are stored under ``key``; notes that they are needed, and doesn't read them.

        But once those of an earlier version, whose numbers nobody has looked at.
        """
        path = self.path(key)
        try:
            with open_plain(path) as file:
                size = int.from_bytes(file.read(8), "little")
                said = parse_json(file.read(size))["__metadata__"] if size <= MOST_HEADER else {}
                looked_at = bool(FINITE.items() <= said.items())
            if looked_at:
                os.utime(path)
                return True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        tensors = self.get(key)
        if tensors is None:
            return False
        with contextlib.suppress(AtelierError):  # where nothing can be written it is looked at again next time
            self.put(key, tensors)
        return True

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors stored under ``key`` (on the CPU), or None.

        A file that is damaged, or holds what is no number, is removed and counts as None.
        """
        path = self.path(key)
        try:
            file, looked_at = _read(path, key)
            tensors: dict[str, torch.Tensor] = load(file)
            if not looked_at and first_lost(tensors) is not None:
                raise ValueError("numbers")
        except OSError:
            return None
        except (SafetensorError, ValueError):
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store ``tensors``; AtelierError naming the folder if it cannot be written. NotFinite for what is no number."""
        path = self.path(key)
        # The clone parts tensors that share memory, which safetensors refuses.
        values = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
        if (lost := first_lost(values)) is not None:
            raise NotFinite(f"cache: {lost} holds NaN or infinite numbers, which are not kept. Encode it anew.")
        file = Serialised(values)
        try:
            size = file.write(path, {**_stated(key, file.entries, file.data), **FINITE}, durable=False)
        except (OSError, AtelierError) as error:
            reason = error.__cause__ if isinstance(error, AtelierError) else error
            raise AtelierError(
                f"cache: {self.folder} cannot be written ({getattr(reason, 'strerror', None)}). Make room on the disk, or allow "
                "writing there."
            ) from error
        if self._bytes is None:
            self._bytes = sum(size for _, size, _ in self._entries())
        else:
            self._bytes += size
        if self._bytes > self.limit_bytes:
            limit = self.limit_bytes * KEPT_SHARE
            self._bytes = remove_longest_unused(self._entries(), limit, lambda _, stored: stored == path)

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(mtime in ns, bytes, path) of every stored file; temporary files of dead runs are removed on the way."""
        rows = []
        for path in self.folder.glob("??/*"):
            try:
                stat = path.stat()
            except OSError:
                continue
            if path.suffix == ".safetensors":
                rows.append((stat.st_mtime_ns, stat.st_size, path))
            elif path.suffix == ".partial" and time.time() - stat.st_mtime > STALE:
                _remove(path)
        return rows


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
