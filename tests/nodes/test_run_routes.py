"""The window of runs over HTTP: the list, a download, a folder, and a deletion that never takes a run that trains."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.nodes.test_routes import asked, get, post
from lora_atelier.training.runs import live

RUN = "window-test"
FILE = f"{RUN}.safetensors"
HERE = {"Host": "127.0.0.1:8188"}


@pytest.fixture(scope="module")
def routes(comfyui: Path) -> Any:
    from lora_atelier.nodes import routes

    return routes


@pytest.fixture
def run(comfyui: Path) -> Iterator[Path]:
    """A finished run with a state."""
    from lora_atelier.training import host

    path, loras = host.runs_folder() / RUN, host.loras_folder() / RUN
    (path / "state").mkdir(parents=True)
    loras.mkdir()
    (path / "state" / "state.safetensors").write_bytes(b"x" * 3000)
    saved = [{"file": FILE, "epoch": 2, "step": 6, "kind": "last"}]
    (path / "run.json").write_text(json.dumps({"saved": saved, "total": 6, "family": "SD3"}))
    (loras / FILE).write_bytes(bytes(range(256)) * 20)
    (loras / "other.safetensors").write_bytes(b"secret")
    yield path
    for folder in (path, loras):
        shutil.rmtree(folder, ignore_errors=True)


def listed(routes: Any) -> dict[str, Any] | None:
    status, found = get(routes, "catalogue")
    assert status == 200
    return next((row for row in found["runs"] if row["name"] == RUN), None)


def test_the_list_tells_where_a_run_stands_and_what_it_takes(routes, run):
    row = listed(routes)
    assert row is not None
    assert (row["step"], row["total"], row["family"], row["finished"], row["live"]) == (6, 6, "SD3", True, False)
    assert row["sizes"]["state"] == 3000 and row["files"] == [
        {"file": FILE, "epoch": 2, "step": 6, "kind": "last", "bytes": 5120}
    ]


def test_a_file_of_the_run_is_downloaded_whole_and_by_its_name(routes, run):
    async def work(client: Any) -> Any:
        async with client.get(f"/lora_atelier/runs/{RUN}/file", params={"file": FILE}) as answer:
            return answer.status, dict(answer.headers), await answer.read()

    status, headers, data = asked(routes, work)
    assert status == 200 and data == bytes(range(256)) * 20
    assert headers["Content-Disposition"] == f"attachment; filename*=UTF-8''{FILE}"


@pytest.mark.parametrize("file", ["other.safetensors", "../run.json", f"../{RUN}/{FILE}", "", "run.json", "nobody.safetensors"])
def test_no_other_file_can_be_downloaded(routes, run, file):
    from urllib.parse import quote

    status, answer = get(routes, f"runs/{RUN}/file?file={quote(file, safe='')}")
    assert status == 404 and "has no file called" in answer["error"]


def test_a_link_out_of_the_loras_is_no_file_of_a_run(routes, run, tmp_path):
    from lora_atelier.training import host

    (tmp_path / "outside").write_text("secret")
    path = host.loras_folder() / RUN / FILE
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    status, answer = get(routes, f"runs/{RUN}/file?file={FILE}")
    assert status == 404 and "secret" not in json.dumps(answer)


def test_a_run_is_deleted_in_parts(routes, run):
    status, answer = post(routes, f"runs/{RUN}/delete", {"what": "state"})
    assert status == 200 and answer["left"] == [] and answer["bytes"] >= 3000
    row = listed(routes)
    assert row is not None and not row["state"]
    status, answer = post(routes, f"runs/{RUN}/delete", {"what": "all"})
    assert status == 200 and [Path(path).name for path in answer["left"]] == ["other.safetensors"]
    assert listed(routes) is None and not run.exists()


def test_a_run_that_trains_is_not_deleted(routes, run):
    with live.entered(live.Live(RUN, lambda _: None), lambda _: False):
        row = listed(routes)
        assert row is not None and row["live"]
        status, answer = post(routes, f"runs/{RUN}/delete", {"what": "all"})
    assert status == 400 and "is being trained right now" in answer["error"] and (run / "run.json").exists()


def test_a_run_whose_grid_is_drawn_is_not_deleted(routes, run):
    with live.drawing([RUN]), live.drawing([RUN, "other"]):
        pass
    with live.drawing([RUN]):
        status, answer = post(routes, f"runs/{RUN}/delete", {"what": "all"})
    assert status == 400 and "a grid of" in answer["error"] and (run / "run.json").exists()
    assert live.drawn() == set() and post(routes, f"runs/{RUN}/delete", {"what": "all"})[0] == 200


def test_runs_in_an_output_folder_that_is_a_link_are_shown(routes, run, tmp_path):
    from lora_atelier.tests.noise_pictures import noise_picture

    elsewhere = tmp_path / "elsewhere"
    shutil.move(run.parent, elsewhere)
    run.parent.symlink_to(elsewhere, target_is_directory=True)
    try:
        (run / "samples").mkdir()
        noise_picture((8, 8), 40).save(run / "samples" / f"{RUN}-000001.png")
        status, answer = get(routes, f"runs/{RUN}")
        assert status == 200
        (sample,) = answer["samples"]
        assert (sample["filename"], sample["subfolder"]) == (f"{RUN}-000001.png", f"{run.parent.name}/{RUN}/samples")
        assert sample["type"] == "output" and sample["stamp"] > 10**12 and "file" not in sample
    finally:
        run.parent.unlink()
        shutil.move(elsewhere, run.parent)


@pytest.mark.parametrize("body", [{}, {"what": 7}, {"what": "everything"}, {"what": "all", "more": 1}, []])
def test_a_deletion_is_asked_for_plainly(routes, run, body):
    assert post(routes, f"runs/{RUN}/delete", body)[0] == 400
    assert (run / "state" / "state.safetensors").exists()


# The folder on the desktop


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desktop whose file manager writes down what it was asked to show."""
    program, shown = tmp_path / "xdg-open", tmp_path / "shown"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {shown}.part && mv {shown}.part {shown}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":9")
    return shown


def waited(path: Path) -> str:
    for _ in range(200):
        if path.exists():
            return path.read_text()
        time.sleep(0.05)
    return ""


@pytest.mark.skipif(not shutil.which("sh"), reason="the file manager here is a script")
def test_a_folder_opens_for_who_sits_at_this_computer(routes, run, desktop):
    status, answer = post(routes, f"runs/{RUN}/folder", {"which": "run"})
    assert status == 200 and answer == {"path": str(run), "opened": True}
    assert waited(desktop) == str(run)


def test_a_folder_is_only_named_to_who_asks_through_a_proxy(routes, run, desktop):
    headers = {"Content-Type": "application/json", "X-Forwarded-For": "203.0.113.9"}
    status, answer = post(routes, f"runs/{RUN}/folder", {"which": "loras"}, headers)
    assert status == 200 and not answer["opened"] and answer["path"].endswith(RUN)
    assert not desktop.exists()


@pytest.mark.parametrize(
    ("remote", "here"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("192.168.1.5", False),
        ("::ffff:192.168.1.5", False), ("fe80::1%eth0", False), ("2001:db8::1", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_who_sits_here_is_told_by_the_address(remote, here):
    from lora_atelier.nodes import desktop

    assert desktop.sits_here(remote, HERE) is here
    assert not desktop.sits_here(remote, {**HERE, "X-Forwarded-For": "127.0.0.1"})


@pytest.mark.parametrize(
    ("headers", "here"),
    [
        ({"Host": "localhost:8188"}, True), ({"Host": "127.0.0.1"}, True), ({"Host": "[::1]:8188"}, True),
        ({"Host": "localhost:8188", "Origin": "http://localhost:8188"}, True), ({}, False), ({"Host": ""}, False),
        ({"Host": "comfy.example"}, False), ({"Host": "localhost.example:8188"}, False), ({"Host": "[::1"}, False),
        ({"Host": "127.0.0.1:8188", "Origin": "https://comfy.example"}, False), ({"Host": "localhost", "Origin": "null"}, False),
        ({"Host": "localhost", "X-Forwarded-Proto": "https"}, False),
        ({"Host": "localhost", "CF-Connecting-IP": "203.0.113.9"}, False),
        ({"Host": "localhost", "True-Client-IP": "203.0.113.9"}, False),
    ],
)  # fmt: skip
def test_a_proxy_beside_the_server_is_nobody_who_sits_here(headers, here):
    from lora_atelier.nodes import desktop

    assert desktop.sits_here("127.0.0.1", headers) is here


@pytest.mark.skipif(not shutil.which("sh"), reason="the file manager here is a script")
@pytest.mark.parametrize(("does", "shown"), [("exit 3", False), ("exit 0", True), ("exec sleep 20", True)])
def test_a_file_manager_that_fails_has_shown_nothing(desktop, tmp_path, monkeypatch, does, shown):
    from lora_atelier.nodes import desktop as shower

    (tmp_path / "xdg-open").write_text(f"#!/bin/sh\n{does}\n")
    monkeypatch.setattr(shower, "PATIENCE", 1.0)
    assert shower.show(tmp_path) is shown


def test_without_a_desktop_a_folder_is_only_named(routes, run, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert post(routes, f"runs/{RUN}/folder", {"which": "run"}) == (200, {"path": str(run), "opened": False})


@pytest.mark.parametrize("name", ["..", "nobody", "%2e%2e", "a%2fb"])
@pytest.mark.parametrize("which", ["run", "loras", "/", 7])
def test_no_other_folder_is_named(routes, run, desktop, name, which):
    status, answer = post(routes, f"runs/{name}/folder", {"which": which})
    assert status in (400, 404) and "path" not in (answer if isinstance(answer, dict) else {})
    assert not desktop.exists()
