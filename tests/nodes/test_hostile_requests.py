"""Requests and folders of any kind: every answer is JSON with a sentence, none is a failure of the server, none waits."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests import fuzz
from lora_atelier.tests.noise_pictures import noise_picture

JSON = {"Content-Type": "application/json"}
RUN, CELL = "hostile-test", "c" * 24 + ".png"
WIDGETS = {
    "name": "ink", "preset": "SDXL", "rank": 8, "alpha": 4.0, "epochs": 2, "max_steps": 10, "learning_rate": 1e-4,
    "schedule": "cosine", "warmup_steps": 1, "optimizer": "AdamW", "optimizer_args": "betas=0.9,0.99", "rules": "attn=4",
    "gradient_checkpointing": False, "seed": 1,
}  # fmt: skip
DATASET = {
    "folder": "input/hostile",
    "resolution": 64,
    "bucket_step": 8,
    "batch_size": 1,
    "repeats": 1,
    "crop": "center",
    "nested": False,
}
BODIES: dict[str, dict[str, Any]] = {
    "outlook": {"widgets": WIDGETS, "datasets": [DATASET], "model": {"widget": "ckpt_name", "file": "x.safetensors"}},
    "family": {"widget": "ckpt_name", "file": "x.safetensors"},
    "start": {
        "preset": "Z-Image", "choice": {"subject": "person", "memory": "8 GB"}, "fresh": False,
        "loader": {"widget": "ckpt_name", "file": "x.safetensors"}, "drawn": {"file": "x.safetensors", "loras": ["y"]},
        "nodes": [{"type": "LoadDataset", "values": DATASET}, {"type": "ConfigureLoRA", "values": WIDGETS}],
    },
    "settings": {"text": '{"network_dim": 4, "network_alpha": 4, "optimizer_type": "Lion"}', "name": "x.json"},
    "preset": {"name": "mine", "nodes": [{"type": "LoadDataset", "values": DATASET}]},
    f"runs/{RUN}/command": {"command": "stop"},
    "pictures": {"settings": {"folder": "input/hostile", "resolution": 64, "caption_extension": ".txt", "nested": False}},
    "captions": {
        "folder": "input/hostile", "extension": ".txt", "nested": False,
        "edits": [{"picture": "0.png", "caption": "x", "version": "no"}],
    },
    "captions/change": {"captions": {"0.png": "a cat, red"}, "operation": "replace", "text": "cat", "other": "dog"},
    "pictures/add": {
        "folder": "input/hostile", "extension": ".txt",
        "files": [{"name": "0.png", "filename": "0.png", "subfolder": "hostile", "type": "input"}],
    },
    "pictures/remove": {"folder": "input/hostile", "extension": ".txt", "nested": False, "pictures": ["none.png"]},
    "pictures/take_back": {"folder": "input/hostile", "extension": ".txt", "nested": False, "files": ["none.png"]},
    "pictures/restore": {"folder": "input/hostile", "extension": ".txt", "nested": False, "entry": "20260101-000000-abcdef"},
    "pictures/turn": {
        "folder": "input/hostile", "extension": ".txt", "nested": False, "pictures": ["none.png"], "quarters": 1,
    },
    "captions/go_on": {"node": "3"},
    "captions/again": {"node": "3", "picture": "0.png"},
    "grids/favourite": {"run": RUN, "cell": CELL, "on": True},
    "loras/keep": {"lora": "x.safetensors", "name": "kept"},
}  # fmt: skip
FIELDS = {path: body for path, body in BODIES.items() if path not in ("pictures", "captions", "captions/change")}


@pytest.fixture(scope="module")
def client(comfyui: Path) -> Iterator[Callable[[Callable[[Any], Awaitable[Any]]], Any]]:
    """Runs a coroutine with a client of one real server around the routes, which lives as long as the module's tests."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer
    from lora_atelier.nodes import routes
    from lora_atelier.training import host
    from lora_atelier.training.host.senders import guarded

    folder = host.dataset_roots()["input"] / "hostile"
    folder.mkdir(parents=True)
    for i in range(2):
        noise_picture((64, 64), 40, seed=i).save(folder / f"{i}.png")
    loop = asyncio.new_event_loop()

    async def start() -> Any:
        app = web.Application()
        app.add_routes([web.route(route.method, route.path, guarded(route.handler)) for route in routes.table])
        found = TestClient(TestServer(app))
        await found.start_server()
        return found

    found = loop.run_until_complete(start())
    yield lambda work: loop.run_until_complete(asyncio.wait_for(work(found), 60))
    loop.run_until_complete(found.close())
    loop.close()
    shutil.rmtree(folder)


@pytest.fixture
def run(comfyui: Path) -> Iterator[Path]:
    """A run with a page of a grid."""
    from lora_atelier.training import host

    path = host.runs_folder() / RUN
    (path / "grids" / "cells").mkdir(parents=True)
    (path / "run.json").write_text('{"saved": []}')
    yield path
    shutil.rmtree(path)


async def answer(
    client: Any, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Status and JSON; a refusal has a sentence."""
    from yarl import URL

    url = URL(f"http://{client.host}:{client.port}/lora_atelier/{path}", encoded=True)
    async with client.session.request(method, url, data=body, headers=headers or JSON) as found:
        text = await found.text()
        assert found.status < 500, (path, body, text)
        values = json.loads(text) if found.content_type == "application/json" else {}
        if found.status >= 400 and found.content_type == "application/json":
            assert isinstance(values["error"], str) and values["error"]
        return found.status, values


@pytest.mark.parametrize("path", BODIES)
def test_any_body_is_answered(client: Any, run: Path, path: str) -> None:
    @fuzz.fuzzed(60)
    @given(fuzz.written(BODIES[path]))
    def ask(body: bytes) -> None:
        status, _ = client(lambda c: answer(c, "POST", path, body))
        assert status in (200, 400, 404, 409, 413)

    ask()


@pytest.mark.parametrize("path", FIELDS)
def test_a_field_that_nobody_knows_is_refused(client: Any, run: Path, path: str) -> None:
    status, values = client(lambda c: answer(c, "POST", path, json.dumps({**FIELDS[path], "extra": 1}).encode()))
    assert status == 400 and values["error"] == "body: 'extra' is unknown."


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"a": 1, "a": 2}', JSON, 400), (b"[" * 60_000, JSON, 400), (b'{"a":' * 10_000, JSON, 400),
        (b"\xff\xfe{\0}\0", JSON, 400),        (b'{"a": ' + b"9" * 5000 + b"}", JSON, 400), (b'{"a": NaN}', JSON, 400),
        (b"", JSON, 400), (b"[]", JSON, 400),
        (b"3", JSON, 400),        (b" " * (17 * 2**20), JSON, 413), (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"no gzip", {**JSON, "Content-Encoding": "gzip"}, 415),
        (zlib.compress(b" " * 2**25), {**JSON, "Content-Encoding": "deflate"}, 415),
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_refused(
    client: Any, run: Path, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert client(lambda c: answer(c, "POST", path, body, headers))[0] == status


def quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name.encode("utf-8", "surrogatepass"), safe="")


@fuzz.fuzzed(150)
@given(fuzz.NAMES, fuzz.NAMES, st.binary(max_size=6))
def test_any_name_is_answered(client: Any, run: Path, name: str, other: str, raw: bytes) -> None:
    from urllib.parse import quote

    if len(name) + len(other) > 7000:  # more than a server reads of an address
        name = name[:300]
    for one in (quoted(name), quote(raw, safe="")):
        for path in (f"runs/{one}", f"runs/{one}?newest=1", f"grids/page?run={one}&page={quoted(other)[:3000]}"):
            client(lambda c, path=path: answer(c, "GET", path))
        client(lambda c, one=one: answer(c, "POST", f"runs/{one}/command", b'{"command": "stop"}'))
        for query in (f"folder={one}&picture=0.png", f"folder=input/{one}&picture=0.png", f"folder=input/hostile&picture={one}"):
            client(lambda c, query=query: answer(c, "GET", f"thumbnail?{query}"))


@fuzz.fuzzed(100)
@given(fuzz.NAMES)
def test_any_name_in_a_body_is_answered(client: Any, run: Path, name: str) -> None:
    for path, body in (
        ("outlook", {"widgets": {"name": name, "start_from": name}, "datasets": [{**DATASET, "folder": f"input/{name}"}]}),
        ("pictures", {"settings": {"folder": f"input/{name}"}}),
        ("captions", {"folder": "input/hostile", "edits": [{"picture": name, "caption": name, "version": ""}]}),
        ("grids/favourite", {"run": name, "cell": name, "on": True}),
        ("loras/keep", {"lora": name, "name": name}),
        ("loras/keep", {"mean": [name, name], "name": name}),
        ("family", {"widget": "ckpt_name", "file": name}),
    ):  # fmt: skip
        client(lambda c, path=path, body=body: answer(c, "POST", path, json.dumps(body).encode()))


def test_folders_full_of_odd_things_are_answered(client: Any, run: Path) -> None:
    """What is damaged is named, and what is sound beside it is shown."""
    from lora_atelier.training import host

    runs = host.runs_folder()
    damaged = runs / f"{RUN}-2"
    (damaged / "samples").mkdir(parents=True)
    (damaged / "run.json").write_bytes(b"[" * fuzz.DEEP)
    odd = host.dataset_roots()["input"] / "hostile-odd"
    odd.mkdir()
    noise_picture((64, 64), 40).save(odd / "good.png")
    (odd / "loop.png").symlink_to("loop.png")
    (odd / "gone.png").symlink_to("nothing")
    if hasattr(os, "mkfifo"):
        os.mkfifo(odd / "pipe.png")
        os.mkfifo(odd / "good.txt")
        os.mkfifo(odd / "table.jsonl")
        os.mkfifo(run / "history.jsonl")
        os.mkfifo(run / "grids" / "grid-0123456789ab.png")
    (host.runs_folder() / "hostile-loop").symlink_to("hostile-loop")
    try:
        _, found = client(lambda c: answer(c, "GET", "runs"))
        assert RUN in found["runs"] and "run.json" in found["damaged"][f"{RUN}-2"]
        status, state = client(lambda c: answer(c, "GET", f"runs/{RUN}"))
        assert status == 404 and "history.jsonl: this is no plain file" in state["error"]
        (run / "history.jsonl").unlink()
        assert client(lambda c: answer(c, "GET", f"runs/{RUN}?newest=1"))[1]["name"] == RUN
        _, found = client(lambda c: answer(c, "GET", "grids"))
        assert {"run": RUN, "page": "grid-0123456789ab", "why": "grid-0123456789ab.png: this is no plain file"} in found[
            "damaged"
        ]
        body = {"settings": {"folder": "input/hostile-odd"}}
        client(lambda c: answer(c, "POST", "pictures", json.dumps(body).encode()))
        for name in ("pipe.png", "loop.png", "gone.png", "."):
            assert client(lambda c, name=name: answer(c, "GET", f"thumbnail?folder=input/hostile-odd&picture={name}"))[0] == 404
        outlook = {"widgets": WIDGETS, "datasets": [{**DATASET, "folder": "input/hostile-odd"}]}
        client(lambda c: answer(c, "POST", "outlook", json.dumps(outlook).encode()))
    finally:
        shutil.rmtree(damaged)
        shutil.rmtree(odd)
        (host.runs_folder() / "hostile-loop").unlink()


def test_a_run_whose_loss_is_no_number_is_shown(client: Any, run: Path) -> None:
    from lora_atelier.training.runs import live

    with live.entered(live.Live(RUN, lambda status: None, total=6), lambda error: False) as now:
        now.update(loss=float("nan"), smooth=float("inf"), step=3)
        status, state = client(lambda c: answer(c, "GET", f"runs/{RUN}"))
        assert status == 200 and (state["live"]["loss"], state["live"]["smooth"], state["live"]["step"]) == (None, None, 3)
