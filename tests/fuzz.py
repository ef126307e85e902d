"""Damage on purpose: hypothesis strategies that change sound documents, bytes and names, and the settings of fuzz tests.

``mutated(document)`` gives JSON values near a sound one (a part dropped, replaced, nested, of another type); ``written`` gives
the bytes of such a file, ``lines_of(rows)`` those of a .jsonl file, ``tensor_files(data)`` those of a safetensors file;
``damaged(data)`` changed bytes of any file, ``NAMES`` names for files and folders. ``fuzzed(n)`` tries n examples, the same ones
every time; with ``ATELIER_FUZZ=50`` in the environment it tries fifty times as many, new ones.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T", bound=Callable[..., Any])
TIMES = int(os.environ.get("ATELIER_FUZZ", "0") or 0)
DEEP = 100_000
"""Brackets, more than any parser's stack holds."""


def fuzzed(examples: int) -> Callable[[T], T]:
    """The settings of a fuzz test, which may share a function's fixtures among its examples."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    made = settings(max_examples=examples * max(1, TIMES), derandomize=not TIMES, deadline=None, suppress_health_check=checks)
    return made  # type: ignore[return-value]


def nested(depth: int, inner: Any = 0) -> Any:
    """A list in a list, and so on; deeper than 900 it could not be written as JSON."""
    for _ in range(depth):
        inner = [inner]
    return inner


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from([
        "", " ", "\0", "\n", "\ud800", "\udcff", "a" * 300, "a" * 5000, "../../victim.txt", "/etc/passwd", "..", ".", "C:\\x",
        "con", "-rf", "*", "[a]", "NaN", "1e999", "\u202e", "é" * 130,
    ]),
)  # fmt: skip
"""Among them what leads out of a folder, and what some system cannot hold."""
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0, float("nan"), float("inf")]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.one_of(
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6),
    st.builds(nested, st.sampled_from([5, 200, 800])),
)
"""Any JSON value, those that Python writes and JSON does not know (NaN) among them."""
NAMES = st.one_of(
    st.text(min_size=1, max_size=8),
    st.sampled_from([
        "..", ".", "", "~", "con", "nul.txt", "a.", " a", "a ", "-a", ".hidden", "a\nb", "[a]", "{a}", "%2e%2e", "..\\a",
        "a/../..", "/", "a\0b", "\ud800", "\udcff", "a" * 255, "a" * 256, "é" * 128, "a" * 5000, "a/" * 3000 + "a", "C:a",
        "\\\\host\\a", "*", "?",
    ]),
)  # fmt: skip
"""Names for files and folders; some cannot be made on some systems."""


def _places(document: Any) -> list[tuple[Any, ...]]:
    """The paths of keys and positions to every part, the whole first."""
    found, waiting = [], [((), document)]
    while waiting:
        path, value = waiting.pop()
        found.append(path)
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting.extend(((*path, key), part) for key, part in parts)
    return sorted(found, key=lambda path: (len(path), str(path)))


@st.composite
def mutated(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """``document`` (plain JSON values) with one to ``most`` parts, at any level, changed; it itself stays as it is."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(_places(changed)))
        how = draw(st.sampled_from(["drop", "replace", "replace", "replace", "wrap", "text", "twice", "rename", "add"]))
        if not path:
            if how in ("replace", "wrap"):
                changed = draw(VALUES) if how == "replace" else [changed]
            elif how == "add" and isinstance(changed, dict):
                changed[draw(TEXTS)] = draw(VALUES)
            continue
        parent = changed
        for step in path[:-1]:
            parent = parent[step]
        key, value = path[-1], parent[path[-1]]
        if how == "drop":
            del parent[key]
        elif how == "replace":
            parent[key] = draw(VALUES)
        elif how == "wrap":
            parent[key] = draw(st.sampled_from([[value], {"a": value}, [value] * 2, nested(200, value)]))
        elif how == "text":
            parent[key] = str(value)[:1000]
        elif how == "twice" and isinstance(parent, list):
            parent.insert(key, value)
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(TEXTS)] = parent.pop(key)
        elif how == "add" and isinstance(value, dict):
            value[draw(TEXTS)] = draw(VALUES)
        elif how == "add" and isinstance(value, list):
            value.append(draw(VALUES))
    return changed


@st.composite
def damaged(draw: st.DrawFn, data: bytes, most: int = 3) -> bytes:
    """``data`` with one to ``most`` places cut, flipped, overwritten or stuffed."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(out)))
        how = draw(st.sampled_from(["cut", "flip", "insert", "overwrite", "remove", "zeros", "head"]))
        if how == "cut":
            del out[at:]
        elif how == "flip" and at < len(out):
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            out[at:at] = draw(
                st.one_of(st.binary(max_size=8), st.sampled_from([b"[" * DEEP, b"{", b"\xff", b"\0", b"\xef\xbb\xbf"]))
            )
        elif how == "overwrite":
            out[at : at + 8] = draw(st.binary(min_size=8, max_size=8))
        elif how == "remove":
            del out[at : at + draw(st.integers(1, 16))]
        elif how == "zeros":
            out[at:] = bytes(len(out) - at)
        elif how == "head":
            del out[:at]
    return bytes(out)


ODD_FILES = st.sampled_from([
    b"", b"\0" * 100, b"null", b"[]", b"0", b'"a"', b"{", b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP,
    b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b'{"a": NaN}', b"1" * 5000, b'{"step": ' + b"9" * 4000 + b"}", b"-", b"{}{}",
    b"\r\n" * 50, b'{"a": "\\ud800"}',
])  # fmt: skip
"""Files that no program of ours has written."""


def written(document: Any) -> st.SearchStrategy[bytes]:
    """The bytes of a JSON file near ``document``: changed in structure or as text, a name twice, or another file."""
    sound = json.dumps(document).encode()
    twice = sound[:-1] + b", " + sound[1:] if isinstance(document, dict) and document else sound
    structured = mutated(document).map(lambda value: json.dumps(value).encode())
    return st.one_of(structured, structured, damaged(sound), ODD_FILES, st.just(twice))


def lines_of(rows: list[Any]) -> st.SearchStrategy[bytes]:
    """The bytes of a .jsonl file near ``rows``: some of its lines changed, or the whole damaged."""
    sound = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    line = st.one_of(*(written(row) | st.just(json.dumps(row).encode()) for row in rows))
    return st.one_of(
        st.lists(line, max_size=5).map(b"\n".join),
        st.lists(line, max_size=5).map(lambda a: b"\n".join([*a, b""])),
        damaged(sound),
    )


@st.composite
def tensor_files(draw: st.DrawFn, data: bytes) -> bytes:
    """A sound safetensors file with its header changed in structure, its length, or any of its bytes."""
    if draw(st.booleans()):
        return draw(damaged(data))
    length = int.from_bytes(data[:8], "little")
    header = draw(written(json.loads(data[8 : 8 + length])))
    stated = draw(
        st.sampled_from([len(header), len(header), len(header), 0, 1, length, len(header) + 7, 2**40, 2**63, 2**64 - 1])
    )
    return stated.to_bytes(8, "little") + header + data[8 + length :]
