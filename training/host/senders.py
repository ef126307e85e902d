"""Who may ask this server: its own pages and programs, and no page of another site.

A browser lets any page send requests to this computer, and a page whose name is made to lead here meanwhile (DNS rebinding) even
reads the answers. What a page cannot change are the headers that the browser writes itself: Host, Origin and Sec-Fetch-Site.
docs/decisions.md says what follows from each.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import web
from comfy.cli_args import args
from multidict import CIMultiDictProxy

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]{2,45})\]|(?P<name>[\w.-]{1,255}))(?::(?P<port>\d{1,5}))?", re.IGNORECASE | re.ASCII)
PORTS = {"http": 80, "https": 443}
NOT_OURS = "Origin: this page is not from this server."


class Place(NamedTuple):
    """What stands in a Host header."""

    name: str
    port: int | None


def guarded(handler: Handler) -> Handler:
    """The handler for those who may ask; others get 403 and a sentence."""

    @wraps(handler)
    async def inner(request: web.Request) -> web.StreamResponse:
        why = refusal(request.headers, args.listen, args.enable_cors_header)
        if why is not None:
            return web.json_response({"error": why}, status=403)
        return await handler(request)

    return inner


def refusal(headers: CIMultiDictProxy[str], listen: str, allowed: str | None) -> str | None:
    """Why a request is refused, in a sentence; None if it is not.

    ``listen`` and ``allowed`` are the host's options of where it listens and which other origin may ask (``*``: every one).
    """
    hosts, origins = headers.getall("Host", []), headers.getall("Origin", [])
    if len(hosts) > 1 or len(origins) > 1:
        return "Host: this request names two."
    if allowed == "*" or (allowed and origins == [allowed.rstrip("/")]):
        return None
    place = _place(hosts[0]) if hosts else None
    if hosts and place is None:
        return "Host: this is no address."
    if origins and not (place is not None and _is_from(origins[0], place)):
        return NOT_OURS
    site = headers.get("Sec-Fetch-Site")
    if site not in (None, "same-origin", "none"):
        return NOT_OURS
    if place is None or not _is_local(listen) or _cannot_be_rebound(place.name) or (allowed and _is_from(allowed, place)):
        return None
    # Browsers send Sec-Fetch-Site, and https, where nobody can have changed what the name leads to: behind a proxy of one's own.
    if site is not None or (origins and origins[0].startswith("https:")):
        return None
    return (
        f"Host: this server listens to its own computer only, and was asked as {place.name}. Open it by the address that ComfyUI "
        "prints, or by https, or start it with --enable-cors-header and the address at which it is opened."
    )


def _place(text: str) -> Place | None:
    match = HOST.fullmatch(text)
    if match is None:
        return None
    name = (match["six"] or match["name"]).lower().rstrip(".")
    return Place(name, int(match["port"]) if match["port"] else None)


def _is_from(origin: str, place: Place) -> bool:
    """Whether a page of ``origin`` was loaded from ``place``; some proxies leave the port out of that."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    there = _place(parts.netloc)
    if there is None or parts.scheme not in PORTS:
        return False
    return there.name == place.name and place.port in (None, there.port or PORTS[parts.scheme])


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_local(listen: str) -> bool:
    """Whether only programs of this computer reach the server."""
    names = [name.strip().strip("[]") for name in listen.split(",")]
    return all(name == "localhost" or ((found := _address(name)) is not None and found.is_loopback) for name in names)


def _cannot_be_rebound(name: str) -> bool:
    """A number leads nowhere else, and browsers do not ask a name server for localhost."""
    return name == "localhost" or name.endswith(".localhost") or _address(name) is not None
