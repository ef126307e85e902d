"""Writing files so that a crash, a cancel or a full disk never leaves half of one."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from .errors import AtelierError

LEFT_OVER = re.compile(r"\.[0-9a-f]{8}\.partial$")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``; when the block ends well it takes ``path``'s place in one step, else it is removed.

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
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
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


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file; all tensors must lie on the CPU."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata))


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
