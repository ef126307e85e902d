"""Owner of a run: the one process that trains it. The system itself ends the ownership of a process that has died."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import AtelierError
from ..files import read_json
from .layout import OWNER_FILE

log = logging.getLogger("lora-atelier")
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What file systems answer that cannot lock."""
NOTE = f"{OWNER_FILE}.json"


class Owner:
    """Ownership of a run's folder, from ``take`` to ``release``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = FileLock(str(folder / OWNER_FILE), timeout=0)

    def take(self) -> None:
        """AtelierError, naming who it is, while another process has it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise AtelierError(
                f"name: the run {self.folder.name} is being trained right now by {_told(self.folder)}. Wait until it ends, stop "
                "it there, or choose another name."
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise AtelierError(
                    f"name: the run's folder {self.folder} cannot be written ({error.strerror}). Make it writable, or choose "
                    "another name."
                ) from error
            log.info("%s: this file system knows no locks, so two ComfyUIs could train the run at once", self.folder)
        note = {"process": os.getpid(), "computer": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M")}
        with suppress(OSError):  # only for people, so it need not be there, nor be whole at every moment
            (self.folder / NOTE).write_text(json.dumps(note), encoding="utf-8")

    def release(self) -> None:
        """Nothing where it was not taken."""
        if self._lock.is_locked:
            with suppress(OSError):
                (self.folder / NOTE).unlink()
            self._lock.release()


def _told(folder: Path) -> str:
    try:
        note = read_json(folder / NOTE, 4096)
        return f"another ComfyUI (process {note['process']} on {note['computer']}, since {note['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another ComfyUI"
