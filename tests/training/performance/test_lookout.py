"""Processes that listen to each other beside their work: real ones, by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo.server import free_port

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
how, rank, ways = sys.argv[2], int(os.environ["RANK"]), []
dist.init_process_group("gloo")
lookout = Lookout(dist.new_group(backend="gloo"), lambda: ways.append(1), every=0.05)
for number in range(2):
    try:
        with lookout.on(lambda error: isinstance(error, LookupError)):
            until = time.monotonic() + (0.5 if number == 0 or how == "well" else 60)
            while time.monotonic() < until and not lookout.heard:
                if number and rank == 1 and how == "killed":
                    os._exit(9)
                if number and rank == 1 and how == "leaves":
                    lookout.leave(torch.device("cpu"))
                if number and how == "fails" and rank == 1:
                    raise RuntimeError("alone")
                if number and how == "in order":
                    raise LookupError("all of them")
                time.sleep(0.02)
    except (LookupError, RuntimeError):
        pass
sys.stdout.write(json.dumps({"heard": lookout.heard, "intact": lookout.intact, "ways": len(ways)}))
sys.stdout.flush()
os._exit(0)  # torch's own threads of a connection that is gone do not end in order
"""


def together(how: str) -> list[tuple[int, dict[str, Any]]]:
    """Exit code and words of each of three processes."""
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(ROOT), how], env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, json.loads(one or "{}")) for process, one in zip(processes, said, strict=True)]


@pytest.mark.parametrize("how", ["well", "in order"])
def test_an_end_together_is_nothing_to_be_heard(how: str) -> None:
    assert together(how) == [(0, {"heard": False, "intact": True, "ways": 0})] * 3


@pytest.mark.parametrize("how", ["killed", "leaves", "fails"])
def test_where_one_is_gone_the_others_give_up_what_they_wait_for(how: str) -> None:
    told = together(how)
    for rank in (0, 2) if how == "killed" else (0, 1, 2):
        assert told[rank] == (0, {"heard": True, "intact": True, "ways": 1}), (rank, told)
    assert how != "killed" or told[1][0] == 9
