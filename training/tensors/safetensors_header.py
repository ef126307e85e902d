"""Safetensors header: names, types and shapes of a file's tensors, and nothing of what is in them.

The format: 8 bytes with the header's length (little endian), then so many bytes of JSON (huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import AtelierError
from ..files import open_plain, parse_json, replacing

LIMIT = 100_000_000
"""Bytes; the safetensors library refuses longer headers as well."""
MOST_SIDES = 64
"""Dimensions; torch knows no more."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says about its tensors."""

    entries: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    metadata: dict[str, str]

    def tensors(self) -> dict[str, Tensor]:
        """Stand-ins of the right shapes that need no memory: matrices without contents, vectors and scalars of zeros.

        A vector can be asked for its values, which some of the host's rules do; the answer is that of a zero.
        """
        return {
            name: torch.empty(shape, dtype=dtype, device="meta") if len(shape) > 1 else torch.zeros((), dtype=dtype).expand(shape)
            for name, (dtype, shape) in self.entries.items()
        }


def read_header(path: Path) -> Header:
    """Reads the header alone; AtelierError for a file that has none."""
    if path.suffix.lower() != ".safetensors":
        raise AtelierError(f"{path.name}: only safetensors files tell what they hold; this one was not read.")
    try:
        with open_plain(path) as file:
            length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
            if not 2 <= length <= min(LIMIT, size - 8):
                raise ValueError("no header")
            rows = parse_json(file.read(length))
        metadata = rows.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata")
        entries = {name: _entry(row) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtelierError(f"{path.name}: this is no safetensors file, or it is damaged; download it again.") from error
    return Header(entries, metadata)


def add_metadata(path: Path, more: Mapping[str, str]) -> None:
    """Gives a file further metadata; its tensors stay as they are, byte for byte."""
    with replacing(path) as temporary, open_plain(path) as file, open(temporary, "wb") as written:
        rows = parse_json(file.read(int.from_bytes(file.read(8), "little")))
        rows = {"__metadata__": {**rows.pop("__metadata__", {}), **more}, **rows}
        text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        written.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(file, written, 1 << 20)


def contents_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's tensors: their names, types, shapes and bytes. What the file says about itself doesn't count, so
    that one that was written anew, at another time, is the same. AtelierError for a file that has no header.
    """
    read_header(path)
    digest = hashlib.sha256()
    with open_plain(path) as file:
        rows = parse_json(file.read(int.from_bytes(file.read(8), "little")))
        rows.pop("__metadata__", None)
        digest.update(json.dumps(rows, sort_keys=True).encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _entry(row: dict[str, Any]) -> tuple[torch.dtype, tuple[int, ...]]:
    shape, most = row["shape"], 2**62
    whole = isinstance(shape, list) and len(shape) <= MOST_SIDES and all(type(side) is int and 0 <= side < most for side in shape)
    if not whole or math.prod(shape) >= most:
        raise ValueError("no shape")
    return DTYPES.get(row["dtype"], torch.uint8), tuple(shape)
