"""Processes that listen to each other beside their work: real ones, by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_atelier.demo.machines import Machines

ROOT = Path(__file__).resolve().parents[3]
WORK = """
import json, os, sys, time
from types import ModuleType
package = ModuleType("lora_atelier")
package.__path__ = [sys.argv[1]]
sys.modules["lora_atelier"] = package
import torch
import torch.distributed as dist
from lora_atelier.training.performance.lookout import Lookout
rank, told = int(os.environ["RANK"]), []
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=3)
for ends in json.loads(sys.argv[2]):
    ways = []
    lookout = Lookout(dist.new_group(backend="gloo"), lambda: ways.append(1), every=0.05)
    for end in ends:
        try:
            with lookout.on(lambda error: isinstance(error, LookupError)):
                until = time.monotonic() + (0.5 if end == "well" else 60)
                while time.monotonic() < until and not lookout.heard:
                    if rank == 1 and end == "killed":
                        os._exit(9)
                    if rank == 1 and end == "leaves":
                        lookout.leave(torch.device("cpu"))
                    if rank == 1 and end == "fails":
                        raise RuntimeError("alone")
                    if end == "in order":
                        raise LookupError("all of them")
                    time.sleep(0.02)
        except (LookupError, RuntimeError):
            pass
    told.append({"heard": lookout.heard, "intact": lookout.intact, "ways": len(ways)})
sys.stdout.write(json.dumps(told))
sys.stdout.flush()
os._exit(0)  # torch's own threads of a connection that is gone do not end in order
"""


QUIET = {"heard": False, "intact": True, "ways": 0}
HEARD = {"heard": True, "intact": True, "ways": 1}


def together(folder: Path, ends: list[list[str]]) -> list[tuple[int, list[dict[str, Any]]]]:
    """Exit code and words of each of three processes; ``ends``: of one lookout after another, how each of its times ends."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", **Machines(3).variables()}
    processes = []
    try:
        for rank in range(3):
            with (folder / f"said-{rank}").open("wb") as said:
                line = [sys.executable, "-c", WORK, str(ROOT), json.dumps(ends), str(folder / "meeting")]
                processes.append(subprocess.Popen(line, env={**shared, "RANK": str(rank)}, stdout=said))
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(code, json.loads((folder / f"said-{rank}").read_text() or "[]")) for rank, code in enumerate(codes)]


def test_an_end_together_is_nothing_to_be_heard(tmp_path: Path) -> None:
    assert together(tmp_path, [["well", "in order"]]) == [(0, [QUIET])] * 3


def test_where_one_leaves_the_others_give_up_what_they_wait_for(tmp_path: Path) -> None:
    assert together(tmp_path, [["well", "leaves"], ["well", "fails"]]) == [(0, [HEARD, HEARD])] * 3


def test_where_one_is_killed_the_others_give_up_what_they_wait_for(tmp_path: Path) -> None:
    assert together(tmp_path, [["well", "killed"]]) == [(0, [HEARD]), (9, []), (0, [HEARD])]
