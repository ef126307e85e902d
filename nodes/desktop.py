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
from urllib.parse import urlsplit

FORWARDED = (
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server",
    "X-Real-IP", "Via", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "X-Original-Host",
)  # fmt: skip
"""What proxies write: behind one the sender may sit anywhere, wherever the proxy does."""
PATIENCE = 2.0
"""Seconds in which a file manager says that it cannot; one that is still there shows the folder."""


def sits_here(remote: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this very computer: by its address, and by the names that it gives the server.

    Behind a proxy that says nothing of itself a browser far away knows the server by another name.
    """
    if any(name in headers for name in FORWARDED):
        return False
    with suppress(ValueError):
        names = [urlsplit(f"//{headers.get('Host', '')}").hostname]
        names += [urlsplit(headers["Origin"]).hostname] if "Origin" in headers else []
        return all(name == "localhost" or _is_loopback(name or "") for name in names) and _is_loopback(remote or "")
    return False


def _is_loopback(text: str) -> bool:
    """ValueError for what is no address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


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
        quiet = subprocess.DEVNULL
        shown = subprocess.Popen([program, str(folder)], stdin=quiet, stdout=quiet, stderr=quiet)
        try:
            return shown.wait(timeout=PATIENCE) == 0
        except subprocess.TimeoutExpired:
            return True
    except OSError:
        return False
