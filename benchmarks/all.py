"""Every benchmark that fits this machine, one after the other in one go, each with a limit of its own.

    python3 studio.py bench all [--json] [--save] [--parts step_time-sdxl-1 grid] [--minutes 9] [--list]

For the few minutes that a borrowed GPU may be there: what is worth most comes first, a part that fails or takes too long is named
and the next one begins, and where less time is left than a part's limit, that is its limit. Each part is a process of its own and
compares its sides in turns. With ``--json`` the last line holds what all have found.

With ``--save`` every part writes its figures to ``benchmarks/results``, or to the folder that ``ATELIER_RESULTS`` names.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common

FOLDER = Path(__file__).parent
FEWEST = 20.0
"""Seconds with which a part may still be begun."""


@dataclass(frozen=True)
class Part:
    """A benchmark with its arguments."""

    name: str
    arguments: tuple[str, ...]
    """The first is the benchmark."""
    seconds: float
    """Its limit."""


def _step(model: str, batch: int, seconds: float, *more: str) -> Part:
    line = ("step_time", "--models", model, "--batch", str(batch), "--rounds", "2", "--steps", "4")
    return Part(f"step_time-{model}-{batch}", (*line, "--targets", "attention + feed-forward", *more), seconds)


ON_GPU = (
    _step("sdxl", 1, 150, "--sides", "ours", "peft"),
    _step("flux", 1, 120, "--sides", "ours"),
    Part("preparing", ("preparing", "--pictures", "300"), 120),
    Part("grid", ("grid",), 90),
    _step("sdxl", 4, 100, "--sides", "ours", "peft"),
    Part("launches", ("launches",), 120),
    Part("dataset", ("dataset", "--pictures", "60", "--unchanged", "200", "--resolutions", "512"), 120),
)
ON_CPU = (
    Part("launches", ("launches",), 900),
    Part("pauses", ("pauses",), 600),
    Part("grid", ("grid",), 1200),
    Part("preparing", ("preparing",), 1800),
    Part("step_time-sd15-1", ("step_time", "--models", "sd15", "--pixels", "256", "--batch", "1", "--rounds", "2"), 3600),
    Part("dataset", ("dataset",), 3600),
)


def run(part: Part, limit: float, save: bool) -> dict[str, Any]:
    """``seconds``, and ``result`` or, where there is none, ``failed`` in words."""
    script = FOLDER / f"{part.arguments[0]}.py"
    if not script.is_file():
        return {"seconds": 0.0, "failed": f"there is no {script.name}"}
    line = [sys.executable, str(script), *part.arguments[1:], "--json", *(["--save"] if save else [])]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        # A group of its own: a part starts processes itself, and none of them may go on when its time is over.
        process = subprocess.Popen(line, stdout=out, text=True, env=os.environ, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return {"seconds": round(limit, 1), "failed": f"not done after {limit:.0f} s"}
        finally:
            _end(process)
        out.seek(0)
        said = out.read().splitlines()
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - begin, 1)}
    try:
        result = json.loads(said[-1]) if code == 0 else None
    except (IndexError, ValueError):
        result = None
    if result is None:
        return {**found, "failed": f"it ended with {code} and no result; what it said stands above"}
    return {**found, "result": result}


def _end(process: subprocess.Popen[str]) -> None:
    """Ends it and what it has started, where any of that is still there."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def run_all(parts: list[Part], seconds: float | None, save: bool) -> dict[str, dict[str, Any]]:
    """What every part has found, by its name; ``seconds`` is the limit of all together."""
    end = None if seconds is None else time.perf_counter() + seconds
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        left = part.seconds if end is None else min(part.seconds, end - time.perf_counter())
        if left < min(FEWEST, part.seconds):
            found[part.name] = {"seconds": 0.0, "failed": "no time was left for it"}
        else:
            _say(f"\n{part.name}, at most {left:.0f} s")
            found[part.name] = run(part, left, save)
        _say(f"{part.name}: {found[part.name].get('failed', 'done')} ({found[part.name]['seconds']} s)")
    return found


def _say(text: str) -> None:
    """To the person; standard output is kept for the result."""
    print(text, file=sys.stderr, flush=True)


def has_gpu() -> bool:
    """Asked in a process of its own, which takes no memory of the GPU from the parts."""
    line = [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
    return subprocess.run(line, env=os.environ).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", help="names of parts; default: all")
    parser.add_argument("--minutes", type=float, help="of all parts together; default: each has its own limit only")
    parser.add_argument("--list", action="store_true", help="name the parts of this machine with their limits, and stop")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures of every part to benchmarks/results")
    options = parser.parse_args()
    fitting = ON_GPU if has_gpu() else ON_CPU
    unknown = set(options.parts or ()) - {part.name for part in fitting}
    if unknown:
        raise SystemExit(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in fitting)}")
    parts = [part for part in fitting if part.name in (options.parts or [part.name])]
    if options.list:
        for part in parts:
            print(f"{part.name}: {' '.join(part.arguments)}, at most {part.seconds:.0f} s")
        return
    found = run_all(parts, options.minutes and 60 * options.minutes, options.save)
    for name, one in found.items():
        print(f"{name}: {one.get('failed', 'done')}, {one['seconds']} s")
    if options.json:
        print(json.dumps({"parts": found, "load_average_after": _common.load_average()}))
    if not any("result" in one for one in found.values()):
        raise SystemExit("no part has a result")


if __name__ == "__main__":
    main()
