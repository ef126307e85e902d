"""What one does with a server once it stands: open it to a person, or run the train-then-test workflow. Standard library only."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .server import Server, ServerError, error_of, free_port
from .workflow import to_prompt

GRID_NODE = "EpochWeightGrid"
# Identical inputs would find the finished run of last time and train nothing.
TRAIN_ANEW = {("TrainLoRA", "when_interrupted"): "start over"}
LONGEST_JOB = 4 * 3600  # s
LINE_EVERY = 5.0  # s between two lines of progress, at least
SILENCE = 20.0  # s after which a silent server is said to be running
DECORATION = re.compile(r"(\x1b\[[0-9;]*m)+(\[INFO\]\S* ?)?")

Say = Callable[[str], None]


def port_or_free(port: int, say: Say) -> int:
    """The port, or another one if something listens there already."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return port
    other = free_port()
    say(f"Port {port} is taken, so this server gets {other}.")
    return other


def stop_on_termination() -> None:
    """Let a termination signal end the server in order, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def serve(server: Server, say: Say) -> int:
    """Keep the server open until Ctrl-C, or until it ends by itself (then 1)."""
    stop_on_termination()
    say("ComfyUI is starting ...")
    with server:
        print(f"\nComfyUI with LoRA Atelier: {server.url}", flush=True)
        say("Open the workflow: press w in the canvas and choose train_then_test, or drop workflows/train_then_test.json on it.")
        say(f"What the server prints goes to {server.log_file}. Ctrl-C stops it.")
        try:
            assert server.process is not None
            code = server.process.wait()
        except KeyboardInterrupt:
            say("\nStopping ...")
            return 0
    say(f"ComfyUI ended by itself with code {code}. The end of its log:\n{server.log_tail()}")
    return 1


class Progress:
    """Says every few seconds how long it has been running and what the server printed last, once for each such line."""

    def __init__(self, server: Server, say: Say):
        self.server, self.say = server, say
        self.started = self.said = time.monotonic()
        self.seen = len(server.log())

    def tick(self) -> None:
        now = time.monotonic()
        if now - self.said < LINE_EVERY:
            return
        log = self.server.log()
        fresh = DECORATION.sub("", log[self.seen :]).replace("\r", "\n").splitlines()
        last = next((line.strip() for line in reversed(fresh) if line.strip()), None)
        if last is None and now - self.said < SILENCE:
            return
        self.seen, self.said = len(log), now
        self.say(f"  {now - self.started:4.0f} s  {(last or 'still running')[:110]}")


def lora_files(server: Server) -> dict[Path, int]:
    """The LoRA files under the server's ``models/loras`` and when each was written (ns)."""
    return {path: path.stat().st_mtime_ns for path in sorted((server.base / "models" / "loras").rglob("*.safetensors"))}


def grid_picture(server: Server, prompt: dict[str, Any], entry: dict[str, Any]) -> Path:
    """The picture that the grid node showed."""
    for key, node in prompt.items():
        if node["class_type"] == GRID_NODE and (pictures := server.pictures(entry, key)):
            return pictures[0]
    raise ServerError(f"the workflow ended without a picture of {GRID_NODE}", entry)


def demo(server: Server, workflow: Path, say: Say) -> dict[str, Any]:
    """Run the workflow file on a server of its own: ``{"loras": [paths, oldest first], "grid": path, "seconds": {...}}``."""
    stop_on_termination()
    canvas = json.loads(workflow.read_text(encoding="utf-8"))
    started = time.monotonic()
    say("ComfyUI is starting ...")
    with server:
        up = time.monotonic()
        say(f"ComfyUI runs ({up - started:.0f} s). {workflow.name}: dataset, captions, training, grid ...")
        before = lora_files(server)
        prompt = to_prompt(canvas, server.object_info(), TRAIN_ANEW)
        progress = Progress(server, say)
        number = server.queue(prompt, {"extra_pnginfo": {"workflow": canvas}})
        entry = server.wait(number, LONGEST_JOB, progress.tick)
        if (problem := error_of(entry)) is not None:
            raise ServerError(f"{problem}\nThe server's log is {server.log_file}", entry)
        done = time.monotonic()
        written = {path: when for path, when in lora_files(server).items() if before.get(path) != when}
        result = {
            "loras": [str(path) for path in sorted(written, key=lambda path: written[path])],
            "grid": str(grid_picture(server, prompt, entry)),
            "seconds": {"start": round(up - started, 1), "job": round(done - up, 1)},
        }
    sys.stderr.flush()
    return result
