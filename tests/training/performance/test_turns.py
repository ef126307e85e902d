"""What processes that train together tell each other before a training, between two, and when one leaves: two real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

WORK = """
import json, os, sys, time
from types import ModuleType

sys.modules["lora_atelier"] = ModuleType("lora_atelier")
sys.modules["lora_atelier"].__path__ = [sys.argv[1]]
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.performance.team import Turns, team

ours, found = team(), {}
leads = ours.leads


def raised(work):
    try:
        work()
    except Exception as error:
        return error


def begun(turns, node):
    turns.begin(node, lambda _: False, lambda: None)


def part(error):
    with ours.together(lambda _: False, lambda: None):
        if error is not None:
            raise error


found["other nodes"] = str(raised(lambda: Turns().meet(["3", "5"] if leads else ["5"])))
found["cannot begin"] = str(raised(lambda: Turns().meet(["3"] if leads else [], "" if leads else "there is no such model")))

sentence = raised(lambda: part(None if leads else AtelierError("a sentence")))
fault = raised(lambda: part(None if leads else KeyError("a fault")))
found["sentence"] = [str(sentence), ours.in_order(sentence), ours.goes_on_after(sentence)]
found["fault"] = [str(fault), ours.in_order(fault), ours.goes_on_after(fault) and isinstance(fault, AtelierError)]

# A training that all leave for one reason: who follows waits until the first process is through.
turns = Turns()
turns.meet(["3"])
begun(turns, "3")


@turns.training()
def fails():
    part(AtelierError("all know") if leads else None)


found["in order"] = str(raised(fails))
since = time.monotonic()
if leads:
    time.sleep(3)
turns.end()
found["waited"] = time.monotonic() - since

# Two trainings; in the first of them the first process alone fails, and nobody waits for what does not come.
turns = Turns()
turns.meet(["3", "5"])
assert leads or turns.next() == "3"
begun(turns, "3")


@turns.training()
def breaks():
    if leads:
        raise OSError("the disk is full")
    part(None)


found["alone"] = str(raised(breaks))
turns.end()
print(json.dumps(found), flush=True)
os._exit(0)
"""


def free_port() -> int:
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return int(there.getsockname()[1])


def test_nobody_waits_for_what_does_not_come_and_all_stay_till_the_first_is_through(root: Path, tmp_path: Path) -> None:
    shared = {
        **os.environ, "LORA_ATELIER_TEAM": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    script = tmp_path / "work.py"
    script.write_text(WORK, encoding="utf-8")
    logs = [(tmp_path / f"{rank}.out", tmp_path / f"{rank}.err") for rank in range(2)]
    running = []
    try:
        for rank, (out, err) in enumerate(logs):
            with out.open("wb") as to, err.open("wb") as beside:
                line = [sys.executable, str(script), str(root)]
                running.append(subprocess.Popen(line, env={**shared, "RANK": str(rank)}, stdout=to, stderr=beside))
        for one in running:
            one.wait(timeout=240)
    finally:
        for one in running:
            one.kill()
    said = [err.read_text(encoding="utf-8") for _, err in logs]
    leader, follower = (json.loads(out.read_text(encoding="utf-8") or "{}") for out, _ in logs)
    assert leader and follower, said
    for found in (leader, follower):
        assert "would train different nodes (3, 5 and 5). Give every machine the same file" in found["other nodes"]
    assert leader["cannot begin"] == "Process 1 of this training has failed: there is no such model"
    assert follower["cannot begin"] == "None", "it says so itself"
    assert leader["sentence"][0].startswith("Process 1 of this training has failed: a sentence. What was learnt is kept")
    assert leader["sentence"][1:] == [True, True] == follower["sentence"][1:]
    assert "KeyError" in leader["fault"][0] and leader["fault"][1:] == [True, False] == follower["fault"][1:]
    assert leader["in order"] == "all know" and "Process 0 of this training has failed: all know" in follower["in order"]
    assert follower["waited"] > 1.5
    assert leader["alone"] == "the disk is full" and "Another process of this training has ended" in follower["alone"]
