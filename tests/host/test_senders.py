"""Who may ask a real server: every route of the pack answers its own pages and refuses those of others."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_atelier.demo.server import Server, make_base
from lora_atelier.tests.host import support

GET = [
    "runs", "runs/nobody", "runs/nobody/file?file=x.safetensors", "catalogue", "grids", "grids/page?run=a&page=b",
    "thumbnail?folder=input/shapes&picture=x.png", "pictures/made", "captions/waiting",
]  # fmt: skip
POST = [
    "outlook", "family", "start", "settings", "preset", "runs/nobody/command", "runs/nobody/delete", "runs/nobody/folder",
    "pictures", "captions", "captions/change", "pictures/add", "pictures/remove", "pictures/restore", "pictures/turn",
    "pictures/take_back", "pictures/forget",
    "captions/go_on", "captions/again",
    "grids/favourite", "loras/keep",
]  # fmt: skip
REBOUND = {"Host": "evil.example:8188"}


def ask(server: Server, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and body, with exactly these headers beside the content's."""
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        line.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        body = b"{}" if method == "POST" else b""
        sent = {"Content-Length": str(len(body)), **({"Content-Type": "application/json"} if body else {}), **headers}
        for name, value in sent.items():
            line.putheader(name, value)
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, answer.read().decode()
    finally:
        line.close()


def every(server: Server, headers: dict[str, str]) -> set[int]:
    """The statuses of all routes, as they are and below ``/api``; 403 comes with a sentence."""
    found = set()
    for prefix in ("/lora_atelier/", "/api/lora_atelier/"):
        for method, paths in (("GET", GET), ("POST", POST)):
            for path in paths:
                status, body = ask(server, method, prefix + path, headers)
                assert status < 500
                if status == 403 and headers.get("Sec-Fetch-Site") != "cross-site":  # which some hosts refuse themselves
                    assert json.loads(body)["error"]
                found.add(status)
    return found


def test_the_lists_here_name_every_route(comfyui: object) -> None:
    from lora_atelier.nodes import routes

    paths = {path.split("?")[0].replace("nobody", "{name}") for path in (*GET, *POST)}
    assert {route.path.removeprefix("/lora_atelier/") for route in routes.table} == paths


def test_a_server_for_this_computer(host: support.Host) -> None:
    own = f"127.0.0.1:{host.server.port}"
    assert 403 not in every(host.server, {"Host": own, "Origin": f"http://{own}", "Sec-Fetch-Site": "same-origin"})
    assert 403 not in every(host.server, {"Host": f"localhost:{host.server.port}"})
    assert every(host.server, REBOUND) == {403}
    assert every(host.server, {**REBOUND, "Origin": "http://evil.example:8188"}) == {403}
    assert every(host.server, {**REBOUND, "X-Forwarded-Host": own, "X-Forwarded-Proto": "https"}) == {403}
    assert every(host.server, {"Sec-Fetch-Site": "cross-site"}) == {403}
    assert 403 not in every(host.server, {"Host": "art.example", "Sec-Fetch-Site": "same-origin"}), "a proxy with https"


@pytest.fixture
def wide(host_name: str) -> Iterator[Path]:
    base = make_base(Path(tempfile.mkdtemp(prefix="atelier-wide-")), pack=support.ROOT)
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.mark.parametrize("options", [("--listen", "0.0.0.0"), ("--enable-cors-header", "http://art.example")])
def test_a_server_for_others(host_name: str, wide: Path, options: tuple[str, ...]) -> None:
    with Server(sys.executable, support.COMFYUI[host_name], wide, arguments=options) as server:
        if options[0] == "--listen":
            assert 403 not in every(server, {"Host": "box.lan:8188", "Origin": "http://box.lan:8188"})
            assert every(server, {"Host": "box.lan:8188", "Origin": "http://evil.example"}) == {403}
        else:
            assert 403 not in every(server, {"Origin": "http://art.example", "Sec-Fetch-Site": "cross-site"})
            assert every(server, {"Origin": "http://evil.example"}) == {403} == every(server, REBOUND)
