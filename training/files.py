"""Writing files so that a crash, a cancel or a full disk never leaves half of one."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from .errors import AtelierError

LEFT_OVER = re.compile(r"\.[0-9a-f]{8}\.partial$")


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path``; when the block ends well it takes ``path``'s place in one step, else it is removed.

    ``durable``: it is on the disk then, whatever happens to the power; False for what can be made again, such as a cache.
    It may be read by whom the umask says, whatever the block put in its place: safetensors writes a file of its own that only
    its owner may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with full_disk_named(path):
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            with suppress(OSError):  # some file systems know no modes
                temporary.chmod(mode)
            if durable:
                flush(temporary)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
            temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
            with full_disk_named(path), _named(path), open(temporary, "xb") as file:
                temporaries[path] = temporary
                file.write(data)
        settle(list(temporaries.values()))
        for path, temporary in temporaries.items():
            with _named(path):
                os.replace(temporary, path)
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file; all tensors must lie on the CPU."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata))


class Serialised:
    """Tensors on the CPU as the bytes of a safetensors file, made once whatever the file will say about itself."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        from safetensors.torch import save

        self.plain = memoryview(save(dict(tensors)))
        """The file without metadata."""
        self._begin = 8 + int.from_bytes(self.plain[:8], "little")

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


def read_tensors(path: Path, remedy: str, widget: str = "") -> dict[str, Tensor]:
    """Every tensor of a safetensors file, the only kind that is read; AtelierError with ``remedy`` naming it if that fails."""
    from safetensors import SafetensorError, safe_open

    name = f"{widget}: {path.name}" if widget else path.name
    if path.suffix.lower() != ".safetensors":
        raise AtelierError(f"{name} is no .safetensors file; only these are read.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise AtelierError(f"{name} is gone; {remedy}.") from None
    except (OSError, SafetensorError) as error:
        raise AtelierError(f"{name} cannot be read ({error}); {remedy}.") from error
