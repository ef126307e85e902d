"""Writing files so that a crash, a cancel or a full disk never leaves half of one."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from .errors import AtelierError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``; when the block ends well it takes ``path``'s place in one step, else it is removed.

    It may be read by whom the umask says, whatever the block put in its place: safetensors writes a file of its own that only
    its owner may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with suppress(OSError):  # some file systems know no modes
            temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if "No space left" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            raise AtelierError(f"{path}: the disk is full; make room and queue again. What was saved is intact.") from error
        raise


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file; all tensors must lie on the CPU."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata))
