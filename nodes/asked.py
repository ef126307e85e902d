"""How the canvas asks the server: requests are checked, refusals are sentences, and the work is done off the server's thread.

Who may ask at all is decided where the routes are added (``host.add_routes``); writing asks for JSON besides, which no page of
another site can send without being asked first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any

from aiohttp import web

from ..training.files import parse_json

PREFIX = "/lora_atelier"
LIMIT = 64 * 1024
"""Bytes of a request."""
LARGE = 16 * 1024 * 1024
"""Bytes of a request that may hold all captions of a folder."""
_worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lora-atelier-routes")
"""One thread: what is asked twice waits, and a training is never crowded out."""
copying = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lora-atelier-copying")
"""Another one for what takes as long as a disk does, so that no panel waits for it."""
looking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lora-atelier-looking")
"""And one for small pictures, of which a window asks for many."""
reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lora-atelier-reading")
"""And one for folders that nobody has read yet: the films in one are decoded to their ends, which takes minutes."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
table = web.RouteTableDef()


class Refused(Exception):
    """A request that cannot be answered."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def answered(handler: Callable[[web.Request], Awaitable[Any]]) -> Handler:
    """The handler's value as JSON, a refusal as ``{"error": sentence}``."""

    @wraps(handler)
    async def inner(request: web.Request) -> web.StreamResponse:
        try:
            answer = json.dumps(await handler(request), allow_nan=False)
        except Refused as refused:
            return web.json_response({"error": refused.sentence}, status=refused.status)
        except (ValueError, OverflowError) as error:  # AtelierError, and numbers that are none or have no end
            return web.json_response({"error": str(error)}, status=400)
        except OSError as error:  # a name that no system has, a folder that may not be read, a full disk
            return web.json_response({"error": f"{error.filename or 'files'}: {error.strerror or error}."}, status=400)
        return web.json_response(text=answer, headers={"Cache-Control": "no-store"})

    return inner


async def body_of(request: web.Request, limit: int = LIMIT, fields: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The JSON object in a request of at most ``limit`` bytes; with ``fields`` it may have no others."""
    if request.content_type != "application/json":
        raise Refused(415, "Content-Type: send application/json.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":  # a few bytes may stand for gigabytes
        raise Refused(415, "Content-Encoding: send it as it is.")
    data = bytearray()
    if (request.content_length or 0) > limit:
        raise Refused(413, f"body: more than {limit} bytes.")
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > limit:
            raise Refused(413, f"body: more than {limit} bytes.")
    try:
        values = parse_json(bytes(data))
    except ValueError as error:
        raise Refused(400, f"body: {error}.") from error
    if not isinstance(values, dict):
        raise Refused(400, "body: a JSON object is needed.")
    unknown = sorted(values.keys() - set(fields)) if fields is not None else []
    if unknown:
        raise Refused(400, f"body: {unknown[0][:40]!r} is unknown.")
    return values


def text_of(values: Mapping[str, Any], field: str, longest: int = 1000) -> str:
    """A text among the fields."""
    value = values.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise Refused(400, f"{field}: a text of at most {longest} characters is needed.")
    return value


async def apart(work: Callable[..., Any], *values: Any, worker: ThreadPoolExecutor = _worker) -> Any:
    """Off the server's own thread."""
    return await asyncio.get_running_loop().run_in_executor(worker, partial(work, *values))
