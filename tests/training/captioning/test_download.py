"""Fetching from a hub: a real one of one model, served by this test, and the package's own client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from lora_atelier.training.captioning.download import download, folder_name
from lora_atelier.training.errors import AtelierError

FILES = {
    "config.json": b'{"model_type": "blip"}', "model.safetensors": b"weights" * 100, "pytorch_model.bin": b"a pickle",
    "modeling.py": b"raise SystemExit", "README.md": b"read me",
}  # fmt: skip
COMMIT = "a" * 40
CODE = """
import pathlib, sys, types
p = types.ModuleType('lora_atelier'); p.__path__ = [sys.argv[1]]; sys.modules['lora_atelier'] = p
from lora_atelier.training.captioning.download import download
print(download('owner/model', pathlib.Path(sys.argv[2])))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as fetching a model takes."""

    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/owner/model/tree/"):
            rows = [{"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for n, d in FILES.items()]
            self.answer(json.dumps(rows).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models/owner/model"):
            files = [{"rfilename": n} for n in FILES]
            info = {"id": "owner/model", "sha": COMMIT, "siblings": files, "private": False, "tags": []}
            self.answer(json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/owner/model/resolve/") and name in FILES:
            tag = hashlib.sha1(FILES[name]).hexdigest()
            self.answer(FILES[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})
        else:
            self.send_error(404)

    def answer(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(root, folder, endpoint) -> str:
    """What a process of its own says, for the client reads the hub's address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    line = [sys.executable, "-c", CODE, str(root), str(folder / "captioners")]
    return subprocess.run(line, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_a_model_is_fetched_whole_without_pickles_and_code_and_only_once(root, tmp_path, hub):
    assert fetched(root, tmp_path, hub) == "owner--model"
    assert [path.name for path in (tmp_path / "captioners").iterdir()] == ["owner--model"]
    folder = tmp_path / "captioners" / "owner--model"
    wanted = {name: FILES[name] for name in ("config.json", "model.safetensors")}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    asked = len(Hub.asked)
    assert asked > 0 and fetched(root, tmp_path, hub) == "owner--model"
    assert len(Hub.asked) == asked, "what is there is not asked for again"


def test_what_is_there_needs_no_network(tmp_path):
    (tmp_path / "owner--model").mkdir()
    assert download("owner/model", tmp_path) == "owner--model"


@pytest.mark.parametrize("hub_id", ["", "model", "../secret", "a/..", "https://huggingface.co/a/b", "a/b/c", "a b/c", "a/b..c"])
def test_what_is_no_hub_id_is_named(tmp_path, hub_id):
    with pytest.raises(AtelierError, match=r"hub_id: .* is no model's name"):
        download(hub_id, tmp_path)


def test_folder_names():
    assert folder_name(" Salesforce/blip-2_x.y ") == "Salesforce--blip-2_x.y"


def test_without_the_package_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(AtelierError, match="download: the Python package huggingface_hub is not installed"):
        download("owner/model", tmp_path)
    assert not list(tmp_path.iterdir())
