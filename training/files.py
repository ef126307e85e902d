"""Files as they are written and read: never half of one after a crash, a cancel or a full disk, and never trusted.

Whatever lies in a folder may have been put there by anybody: a pipe on which reading waits for ever, gigabytes of nothing, a link
to elsewhere, JSON that no program of ours wrote.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from .errors import AtelierError

LEFT_OVER = re.compile(r"\.[0-9a-f]{8}\.partial$")
DEEPEST = 100
"""Brackets within brackets in a JSON document."""
PATIENCE = 1.0
"""Seconds."""
LONGEST_NUMBER = 40
"""Characters of a number in one: no float and no whole number of 64 bits needs more."""


class Unreadable(AtelierError):
    """A file that cannot be used, and why, as in "run.json: this is no JSON"."""

    def __init__(self, path: Path, why: str):
        super().__init__(f"{path.name}: {why}")
        self.why = why


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path``; when the block ends well it takes ``path``'s place in one step, else it is removed.

    ``durable``: it is on the disk then, whatever happens to the power; False for what can be made again, such as a cache.
    It may be read by whom the umask says, whatever the block put in its place: safetensors writes a file of its own that only
    its owner may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with full_disk_named(path):
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            with suppress(OSError):  # some file systems know no modes
                temporary.chmod(mode)
            if durable:
                flush(temporary)
            put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """``os.replace``; on Windows it is tried for ``PATIENCE`` seconds, since nothing may take the place of a file that is being
    read there, as a page reads the record of a run.
    """
    _patiently(os.replace, temporary, path)


def move(start: Path, end: Path) -> None:
    """``os.rename``; on Windows it is tried for ``PATIENCE`` seconds, since no file may be moved there while it is being read, as
    a picture is whose thumbnail is made.
    """
    _patiently(os.rename, start, end)


def _patiently(work: Callable[[Path, Path], None], start: Path, end: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            work(start, end)
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() > until:
                raise
        time.sleep(0.02)


def temporary_beside(path: Path) -> Path:
    """A new name in the same folder, which ``sweep`` knows."""
    return path.with_name(f"{shortened(path.name, 230)}.{uuid.uuid4().hex[:8]}.partial")


def shortened(name: str, most: int) -> str:
    """The beginning of a name, of at most ``most`` bytes; most systems know no names of more than 255."""
    return os.fsencode(name)[:most].decode("utf-8", "ignore") if len(os.fsencode(name)) > most else name


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turns what the system or safetensors says of a full disk into a sentence about ``path``."""
    try:
        yield
    except Exception as error:
        # safetensors gives the system's own words; 112 is Windows' number for a full disk.
        if getattr(error, "errno", None) == errno.ENOSPC or any(w in str(error) for w in ("No space left", "os error 112")):
            raise AtelierError(f"{path}: the disk is full; make room and queue again. What was saved is intact.") from error
        raise


class HandedOn:
    """Files that nodes of one kind have handed on in this process.

    A node whose files were deleted must run again, although nothing in front of it has changed: ComfyUI remembers its answer.
    """

    def __init__(self) -> None:
        self._files: set[Path] = set()
        self._losses = 0

    def add(self, paths: Iterable[Path]) -> None:
        self._files.update(paths)

    def paths(self) -> list[Path]:
        """Those that are still there, oldest first."""
        return sorted((path for path in self._files if is_file(path)), key=lambda path: (path.stat().st_mtime_ns, path))

    def losses(self) -> int:
        """How often it was noticed that some of them have gone; each is missed once."""
        gone = {path for path in self._files if not is_file(path)}
        if gone:
            self._losses += 1
            self._files.difference_update(gone)
        return self._losses

    def incomplete(self) -> None:
        """To be called when less was handed on than was asked for, so that it is asked for anew."""
        self._losses += 1


def sweep(folder: Path) -> None:
    """Removes the temporary files that a killed process left in ``folder``; nobody else may be writing there."""
    for path in folder.glob("*.partial"):
        if LEFT_OVER.search(path.name):
            with suppress(OSError):
                path.unlink()


def remove_longest_unused(rows: Iterable[tuple[int, int, Path]], limit: float, stays: Callable[[int, Path], bool]) -> int:
    """Removes files, each given as (time of its last use, bytes, path), until the others take at most ``limit`` bytes.

    None of those goes for which ``stays(time, path)``. Returns how many bytes the others take.
    """
    files = sorted(rows)
    total = sum(size for _, size, _ in files)
    for used, size, path in files:
        if total <= limit:
            break
        if not stays(used, path):
            with suppress(OSError):
                path.unlink(missing_ok=True)  # another process may have been quicker
                total -= size
    return total


def append_text(path: Path, text: str) -> None:
    """Adds ``text``, or nothing at all if it cannot be written; only a kill leaves a part of it."""
    with full_disk_named(path), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        left = memoryview(text.encode("utf-8"))
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def flush(path: Path) -> None:
    """What was appended to ``path`` is on the disk when this returns, whatever happens to the power then."""
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def write_all(contents: Mapping[Path, bytes], done: Callable[[Path], None]) -> None:
    """Writes many files: all lie complete on the disk before the first takes its place, so a full disk changes none of them.

    ``done`` hears of every file that has taken its place. The disk is waited for once, not once a file.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            temporary = temporary_beside(path)
            with full_disk_named(path), _named(path), open(temporary, "xb") as file:
                temporaries[path] = temporary
                file.write(data)
        settle(list(temporaries.values()))
        for path, temporary in temporaries.items():
            with _named(path):
                put_in_place(temporary, path)
            done(path)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The system's error speaks of ``path``, not of a temporary name."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def settle(paths: Sequence[Path]) -> None:
    """What was written to these files is on the disk when this returns."""
    if len(paths) > 1 and hasattr(os, "sync"):
        os.sync()
    else:
        for path in paths:
            flush(path)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


class Serialised:
    """Tensors on the CPU as the bytes of a safetensors file, made once whatever the file will say about itself."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        from safetensors.torch import save

        self.plain = memoryview(save(dict(tensors)))
        """The file without metadata."""
        self._begin = 8 + int.from_bytes(self.plain[:8], "little")

    @property
    def entries(self) -> dict[str, Any]:
        """Types, shapes and places by name, as the file's header lists them."""
        values: dict[str, Any] = json.loads(bytes(self.plain[8 : self._begin]))
        return values

    @property
    def data(self) -> memoryview:
        """What follows the header, the same whatever is in that."""
        return self.plain[self._begin :]

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The bytes before ``data`` in a file with this metadata: its length, and JSON as the safetensors library writes it.

        The library puts metadata in a random order; here they have the given one.
        """
        entries = bytes(self.plain[9 : self._begin]).rstrip(b" ")  # without the first brace
        stated = json.dumps(dict(metadata), ensure_ascii=False, separators=(",", ":")).encode()
        text = b'{"__metadata__":' + stated + (b"," if entries != b"}" else b"") + entries
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def write(self, path: Path, metadata: Mapping[str, str], durable: bool = True) -> int:
        """Writes the file through ``replacing``; returns its bytes."""
        header, data = self.header(metadata), self.data
        with replacing(path, durable) as temporary, open(temporary, "wb", buffering=0) as file:
            for part in (memoryview(header), data):
                while part:
                    part = part[file.write(part) :]
        return len(header) + len(data)


def is_file(path: Path) -> bool:
    """Whether a plain file is there; unlike ``Path.is_file`` it never raises, whatever the name is."""
    return os.path.isfile(path)


def is_inside(path: Path, root: Path) -> bool:
    """Whether ``path``, its links followed, is ``root`` or lies in it; False for what cannot be a path."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError):
        return False


def open_plain(path: Path) -> BinaryIO:
    """A plain file for reading; FileNotFoundError if there is none, Unreadable for a folder, a pipe, a device."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb", opener=_opened)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: no system has such a name
        raise Unreadable(path, str(getattr(error, "strerror", error))) from error
    raise Unreadable(path, "this is no plain file")


def _opened(path: str, flags: int) -> int:
    """If a pipe has taken the file's place meanwhile, opening it does not wait."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_limited(path: Path, most: int) -> bytes:
    """The contents of a plain file of at most ``most`` bytes; Unreadable for any other, FileNotFoundError for none."""
    with open_plain(path) as file:
        try:
            data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
        except OSError as error:
            raise Unreadable(path, str(error.strerror)) from error
    if data is None or len(data) > most:
        raise Unreadable(path, f"this has more than {most} bytes")
    return data


def parse_json(data: bytes, finite: bool = True) -> Any:
    """The values that UTF-8 JSON stands for; ValueError saying why for what is none.

    Refused are also names that occur twice in one object, numbers without end, brackets deeper than ``DEEPEST``, and, unless
    ``finite`` is False, NaN and infinity.
    """
    constants: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        values = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once, parse_int=_whole, **constants)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no JSON (line {error.lineno})") from error
    except UnicodeDecodeError as error:
        raise ValueError("this is no UTF-8") from error
    except RecursionError as error:
        raise ValueError("its brackets are too deep") from error
    waiting = [(values, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError("its brackets are too deep")
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        waiting.extend((one, depth + 1) for one in inner if isinstance(one, (dict, list)))
    return values


def read_json(path: Path, most: int, finite: bool = True) -> Any:
    """``parse_json`` of a plain file of at most ``most`` bytes; Unreadable saying why, FileNotFoundError if there is none."""
    try:
        return parse_json(read_limited(path, most), finite)
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(path, str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice in it")
    return values


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError("it has a number without end")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(digits)


def _no_number(text: str) -> float:
    raise ValueError(f"{text[:20]} in it is no finite number")


def read_tensors(path: Path, remedy: str, widget: str = "") -> dict[str, Tensor]:
    """Every tensor of a safetensors file, the only kind that is read; AtelierError with ``remedy`` naming it if that fails."""
    from safetensors import SafetensorError, safe_open

    name = f"{widget}: {path.name}" if widget else path.name
    if path.suffix.lower() != ".safetensors":
        raise AtelierError(f"{name} is no .safetensors file; only these are read.")
    if os.path.exists(path) and not is_file(path):
        raise AtelierError(f"{name} is no file; {remedy}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise AtelierError(f"{name} is gone; {remedy}.") from None
    except (OSError, SafetensorError) as error:
        raise AtelierError(f"{name} cannot be read ({error}); {remedy}.") from error


def room_on_disk(folder: Path) -> int | None:
    """Free bytes where ``folder`` lies or will lie; None where the system does not tell."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None
