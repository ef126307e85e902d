#!/usr/bin/env python3
"""LoRA Atelier from a fresh clone: everything it needs is fetched into the folder ``.studio`` beside this file.

    python3 studio.py demo            train the demo's LoRA and draw its grid; prints where they are
    python3 studio.py train FILE      train what a workflow file trains, and draw its grid, without a browser
    python3 studio.py serve           start ComfyUI with the pack, the demo model and the demo's workflow
    python3 studio.py test [...]      the checks and tests; more arguments go to pytest
    python3 studio.py test --gpu      the tests on the NVIDIA GPU that is there, else on a pretended one
    python3 studio.py check           the checks alone: lint, format and types
    python3 studio.py bench NAME      a benchmark of benchmarks/
    python3 studio.py workflows       write the nodes' present widgets and the presets' values into workflows/
    python3 studio.py setup           only the set-up

Only Python 3.10 or newer is needed. An interrupted set-up goes on where it stopped. ``--comfyui PATH`` uses a ComfyUI that is
already there, with its own Python; a clone that lies in a ComfyUI's ``custom_nodes`` uses that one by itself.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("studio.py needs Python 3.10 or newer, and this is {}.{}: start it with a newer one".format(*sys.version_info))

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

if "lora_atelier" not in sys.modules:  # started as a script: the folder, whatever its name, is this package
    package = ModuleType("lora_atelier")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["lora_atelier"] = package

from lora_atelier.demo import command_line, hosts, machines, run, train, workflow
from lora_atelier.demo.checks import run_bench, run_checks, run_gpu_tests, run_tests
from lora_atelier.demo.server import ServerError
from lora_atelier.demo.setting_up import CHECKPOINT, WORKFLOW, Studio, say
from lora_atelier.demo.stages import SetupError
from lora_atelier.demo.workflow import WorkflowError


def run_demo(studio: Studio, comfyui: str | None, as_json: bool) -> int:
    started = time.monotonic()
    place = studio.place(comfyui)
    if not (studio.home / "models" / "checkpoints" / CHECKPOINT).is_file():
        raise SetupError("the demo model is missing: demo/weights.safetensors is not in this copy of the repository")
    seconds = {"setup": round(time.monotonic() - started, 1)}
    result = run.demo(place.server(), studio.root / "workflows" / WORKFLOW, say)
    result["seconds"] = {**seconds, **result["seconds"]}
    print("\nThe LoRA, one file an epoch:\n  " + "\n  ".join(result["loras"]))
    print(f"The grid of epochs and strengths:\n  {result['grid']}")
    if as_json:
        print(json.dumps(result))
    return 0


def store_workflows(root: Path, info: dict[str, Any]) -> list[str]:
    """Put what a server says of its nodes, and the presets' values, into the workflows; the names of those that have changed."""
    presets = json.loads((root / "js" / "presets.json").read_text(encoding="utf-8"))
    changed = []
    for path in sorted((root / "workflows").glob("*.json")):
        before = path.read_text(encoding="utf-8")
        after = workflow.to_text(workflow.restored(json.loads(before), info, presets))
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            changed.append(path.name)
    return changed


def main(line: Sequence[str] | None = None) -> int:
    arguments, rest = command_line.arguments_of(line, __doc__)
    try:
        studio = Studio()
        if arguments.command == "test":
            return (run_gpu_tests if arguments.gpu else run_tests)(studio, arguments.comfyui, rest)
        if arguments.command == "check":
            return run_checks(studio, arguments.comfyui)
        if arguments.command == "bench":
            return run_bench(studio, arguments.comfyui, arguments.name, rest)
        if arguments.command == "demo":
            return run_demo(studio, arguments.comfyui, arguments.json)
        place = studio.place(arguments.comfyui)
        if arguments.command == "train":
            return train.train(
                place.server(), arguments.workflow, arguments.settings, arguments.everything, arguments.json,
                machines.Machines(arguments.processes, arguments.nodes, arguments.rendezvous, arguments.shard),
            )  # fmt: skip
        if arguments.command == "serve":
            return run.serve(place.server(run.port_or_free(arguments.port, say)), say)
        if arguments.command == "workflows":
            with place.server() as server:
                changed = store_workflows(studio.root, server.object_info())
            say(f"Written anew: {', '.join(changed) or 'none, all are as they should be'}")
            return 0
        say(f"Everything is there. ComfyUI: {place.comfyui}. Next: python3 studio.py serve")
        return 0
    except (SetupError, hosts.HostError, ServerError, WorkflowError, FileExistsError) as error:
        say(f"\nstudio.py stopped: {error}")
        failed = str(error)
    except OSError as error:
        say(f"\nstudio.py stopped: {error}. If the disk is full, make room; then start again, it goes on where it stopped.")
        failed = str(error)
    except KeyboardInterrupt:
        say("\nInterrupted. Start again, and the set-up goes on where it stopped.")
        return 130
    if getattr(arguments, "json", False):
        print(json.dumps({"success": False, "error": failed, "loras": [], "grids": []}, ensure_ascii=False))
    return 1


if __name__ == "__main__":
    sys.exit(main())
