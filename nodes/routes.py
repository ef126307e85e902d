"""What the nodes on the canvas ask the server: a recipe's outlook, a model's family, a run's state, a wish to a run.

Every field is checked before it is used; a bad request is answered with a sentence and never with a failure of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ..training.captioning import review
from ..training.captioning.editing import Changed
from . import caption_routes, grid_routes, picture_routes, preset_routes, run_routes
from .asked import LARGE, PREFIX, Handler, Refused, answered, apart, body_of, copying, looking, reading, table, text_of
from .outlook import OUTLOOK, outlook

__all__ = ["run_routes", "table"]  # whose routes are in the table once it is imported
MOST_OF_MEAN = 1000
"""Files of a mean that is kept."""


@table.post(f"{PREFIX}/outlook")
@answered
async def post_outlook(request: web.Request) -> Any:
    return await apart(outlook, await body_of(request, fields=OUTLOOK))


@table.post(f"{PREFIX}/family")
@answered
async def post_family(request: web.Request) -> Any:
    return await apart(preset_routes.family, await body_of(request, fields=("widget", "file")))


@table.post(f"{PREFIX}/start")
@answered
async def post_start(request: web.Request) -> Any:
    values = await body_of(request, LARGE, ("preset", "choice", "loader", "drawn", "nodes", "fresh"))
    return await apart(preset_routes.starting, values)


@table.post(f"{PREFIX}/settings")
@answered
async def post_settings(request: web.Request) -> Any:
    """``text``: the contents of another trainer's configuration, of a preset's file, or a LoRA's metadata."""
    return await apart(preset_routes.read_settings, await body_of(request, LARGE, ("text", "name")))


@table.post(f"{PREFIX}/preset")
@answered
async def post_preset(request: web.Request) -> Any:
    """The nodes' present values as a preset's file; nothing is written."""
    return await apart(preset_routes.preset_text, await body_of(request, LARGE, ("name", "nodes")))


@table.post(f"{PREFIX}/pictures")
@answered
async def post_pictures(request: web.Request) -> Any:
    return await apart(caption_routes.pictures, await body_of(request), worker=reading)


@table.post(f"{PREFIX}/captions")
@answered
async def post_captions(request: web.Request) -> Any:
    """409 if a file is no longer what the page shows."""
    values = await body_of(request, LARGE)
    try:
        return await apart(caption_routes.save, values)
    except Changed as changed:
        raise Refused(409, str(changed)) from changed


@table.post(f"{PREFIX}/captions/change")
@answered
async def post_change(request: web.Request) -> Any:
    return await apart(caption_routes.change, await body_of(request, LARGE))


def _of_pictures(path: str, work: Callable[[dict[str, Any]], Any], fields: tuple[str, ...]) -> Handler:
    @answered
    async def handler(request: web.Request) -> Any:
        values = await body_of(request, LARGE, fields)
        return await (apart(work, values, worker=copying) if path == "pictures/add" else apart(work, values))

    return handler


for _path, (_work, _fields) in picture_routes.POSTS.items():
    table.post(f"{PREFIX}/{_path}")(_of_pictures(_path, _work, _fields))


@table.get(f"{PREFIX}/pictures/made")
@answered
async def get_made(_request: web.Request) -> Any:
    return await apart(picture_routes.made)


@table.get(f"{PREFIX}/captions/waiting")
@answered
async def get_waiting(_request: web.Request) -> Any:
    """The nodes that wait until somebody has read their captions."""
    return {"waiting": review.waiting()}


@table.post(f"{PREFIX}/captions/again")
@answered
async def post_again(request: web.Request) -> Any:
    """The caption of a picture, by a node that waits; one that doesn't is asked through the queue."""
    values = await body_of(request, fields=("node", "picture"))
    answer = review.again(text_of(values, "node", 200), text_of(values, "picture"))
    return {"caption": await asyncio.wrap_future(answer)}


@table.post(f"{PREFIX}/captions/go_on")
@answered
async def post_go_on(request: web.Request) -> Any:
    node = text_of(await body_of(request, fields=("node",)), "node", 200)
    if not review.go_on(node):
        raise Refused(404, f"node: {node!r} doesn't wait any more.")
    return {}


@table.get(f"{PREFIX}/thumbnail")
async def get_thumbnail(request: web.Request) -> web.StreamResponse:
    try:
        data = await apart(caption_routes.thumbnail, request.query, worker=looking)
    except (ValueError, OSError) as error:
        return web.json_response({"error": str(error)}, status=404)
    return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "no-store"})


@table.get(f"{PREFIX}/grids")
@answered
async def get_grids(_request: web.Request) -> Any:
    return await apart(grid_routes.pages)


@table.get(f"{PREFIX}/grids/page")
@answered
async def get_page(request: web.Request) -> Any:
    """``?run=``, ``?page=``: as ``grids`` lists them."""
    return await apart(grid_routes.page, request.query)


@table.post(f"{PREFIX}/grids/favourite")
@answered
async def post_favourite(request: web.Request) -> Any:
    values = await body_of(request, fields=("run", "cell", "on"))
    if not isinstance(values.get("on"), bool):
        raise Refused(400, "on: true or false is needed.")
    return await apart(grid_routes.favourite, text_of(values, "run", 100), text_of(values, "cell", 100), values["on"])


@table.post(f"{PREFIX}/loras/keep")
@answered
async def post_keep(request: web.Request) -> Any:
    """``mean``: of several files, instead of ``lora``."""
    values = await body_of(request, fields=("lora", "name", "mean"))
    several = values.get("mean")
    if several is None:
        return await apart(grid_routes.keep, [text_of(values, "lora")], text_of(values, "name", 200))
    if not isinstance(several, list) or not 1 < len(several) <= MOST_OF_MEAN:
        raise Refused(400, f"mean: a list of 2 to {MOST_OF_MEAN} LoRAs is needed.")
    loras = [text_of({"mean": one}, "mean") for one in several]
    return await apart(grid_routes.keep, loras, text_of(values, "name", 200))
