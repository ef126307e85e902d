"""``studio.py train``: a workflow up to its training and grid, without a browser and without a server. Standard library only."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from . import prompt
from .server import Server

HEADLESS = Path(__file__).with_name("headless.py")


def train(server: Server, workflow: Path, settings: Sequence[str], everything: bool, as_json: bool) -> int:
    """Runs the workflow in a process of ComfyUI's that listens to nobody; gives 0 (done), 1 (failed) or 130 (interrupted).

    ``settings``: texts as ``prompt.setting_of`` reads them. WorkflowError for what can be told before ComfyUI is started.
    """
    prompt.read(workflow)
    log = server.base / "user" / f"train-{time.strftime('%Y%m%d-%H%M%S')}-{server.port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    job = {
        "workflow": str(workflow.resolve()), "set": list(map(prompt.setting_of, settings)), "everything": everything,
        "log": str(log), "json": as_json,
    }  # fmt: skip
    line = [server.python, "-u", str(HEADLESS), str(server.comfyui), json.dumps(job), *server.options()]
    # Signals of the terminal reach the child by themselves; what reaches this process alone is handed on.
    process = subprocess.Popen(line, cwd=server.comfyui, env=server.variables(), stdin=subprocess.DEVNULL)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT,)}
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code not in (0, 130):
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]) if log.exists() else ""
        print(f"ComfyUI's own words are in {log}" + (f"; its last:\n{tail}" if code != 1 else ""), flush=True)
    return code if code in (0, 1, 130) else 1
