"""A page of the canvas that is only pretended: this pack's modules beside a host that does nothing, in Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

APP = "export const app = { extensions: [], registerExtension(one) { this.extensions.push(one); } };"
API = """export const api = {
  answer: async () => ({}),
  addEventListener() {},
  async fetchApi(path, sent = {}) {
    return { ok: true, json: async () => (path === "/i18n" ? {} : this.answer(path, sent.body)) };
  },
};"""


def seen_by(script: str, root: Path, page: Path, given: object = None) -> Any:
    """What ``script`` of this folder prints of the page that is made in the empty folder ``page``.

    Its first argument is the page's address, and where something is ``given`` the second is a file with it as JSON.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    shutil.copytree(root / "js", page / "extensions" / "lora-atelier")
    (page / "scripts").mkdir()
    (page / "scripts" / "app.js").write_text(APP)
    (page / "scripts" / "api.js").write_text(API)
    (page / "package.json").write_text('{"type": "module"}')
    line = [node, str(Path(__file__).with_name(script)), page.as_uri()]
    if given is not None:
        (page / "given.json").write_text(json.dumps(given))
        line.append(str(page / "given.json"))
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
