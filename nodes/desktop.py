"""Folders shown on the desktop of the computer that the server runs on, for a person who sits at it."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")
"""What proxies write: behind one the sender may sit anywhere, wherever the proxy does."""


def sits_here(remote: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this very computer, by its address."""
    if any(name in headers for name in FORWARDED):
        return False
    with suppress(ValueError):
        address = ipaddress.ip_address((remote or "").partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)
    return False


def show(folder: Path) -> bool:
    """Opens a folder in the system's file manager; False where there is no desktop, or no program for it."""
    if not folder.is_dir():
        return False
    try:
        if sys.platform == "win32":
            os.startfile(folder)
            return True
        if sys.platform != "darwin" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            return False
        program = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
        if program is None:
            return False
        subprocess.Popen([program, str(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return True
    except OSError:
        return False
