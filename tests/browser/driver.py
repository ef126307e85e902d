"""Starts the drivers (``*.mjs``): each opens a real browser on a server's page and tells what it saw there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.host import support

PLAYWRIGHT = Path(os.environ.get("ATELIER_PLAYWRIGHT", support.ROOT / ".studio" / "browser"))
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TEMPLATES = "/api/workflow_templates/lora-atelier"
WORKFLOW = f"{TEMPLATES}/train_then_test.json"
DEFAULTS = {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark", "Comfy.Locale": "en"}


def look(vue: bool) -> dict[str, Any]:
    """The classic canvas in dark colours, or the Vue one in light ones."""
    return {"vue": vue, "palette": "light" if vue else "dark"}


def browser() -> str:
    """Path of Chromium; skips the test where there is no browser to drive."""
    found = os.environ.get("ATELIER_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if not shutil.which("node"):
        pytest.skip("Node.js is not installed; the browser tests drive Chromium with it")
    if not (PLAYWRIGHT / "node_modules" / "playwright-core").is_dir():
        pytest.skip(f"playwright-core is missing: run `npm install playwright-core` in {PLAYWRIGHT}")
    if not found:
        pytest.skip("no Chromium found: install it, or set ATELIER_CHROMIUM to its path")
    return found


def drive(driver: str, host: support.Host, shots: Path, seconds: int = 120, **task: Any) -> dict[str, Any]:
    """What the driver saw on the page of ``host``; ATELIER_SHOTS keeps its pictures of the page, to look at them."""
    shots = Path(os.environ.get("ATELIER_SHOTS") or shots)
    given = {
        "url": host.server.url,
        "playwright": str(PLAYWRIGHT),
        "chromium": browser(),
        "shots": str(shots),
        "seconds": seconds,
    }
    line = ["node", str(Path(__file__).with_name(f"{driver}.mjs")), json.dumps(given | task)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=5 * seconds)
    if "vue" in task:
        for setting, value in DEFAULTS.items():
            host.server.post(f"/settings/{setting}", value)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ours(seen: dict[str, Any]) -> list[str]:
    """Errors on the page, and those of this pack in its console."""
    return [*seen["pageErrors"], *(line for line in seen["consoleErrors"] if "lora-atelier" in line or "lora_atelier" in line)]
