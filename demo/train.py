"""``studio.py train``: a workflow up to its training and grid, without a browser and without a server. Standard library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import prompt
from .server import Server
from .workflow import WorkflowError

TEAM = "LORA_ATELIER_TEAM"  # by which the trainer knows that the processes around it are its own
SHARD = "LORA_ATELIER_SHARD"  # whether each of them shall hold a part of the model only
HEADLESS = Path(__file__).with_name("headless.py")


@dataclass(frozen=True)
class Machines:
    """How many processes train together, and where."""

    processes: int = 1
    """On each machine."""
    nodes: int = 1
    rendezvous: str = ""
    """``host:port`` of the machine that leads, which the others can reach; only for several."""
    shard: bool = False
    """Whether each process holds a part of the model's blocks."""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.nodes < 1:
            raise WorkflowError("--processes and --nodes count from 1")
        if self.nodes > 1 and not self.rendezvous:
            raise WorkflowError(
                "--nodes: say where the machines meet, with --rendezvous HOST:PORT of the first one, on each of them"
            )
        if self.shard and self.processes * self.nodes == 1:
            raise WorkflowError(
                "--shard: one process has nobody to share the model with; add --processes 2 or more, with a GPU each, or set "
                "offload_blocks, which keeps a part of the model in main memory"
            )

    def check(self, gpus: int) -> None:
        if 0 < gpus < self.processes:
            there = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
            raise WorkflowError(f"--processes {self.processes}: torch sees {there} here, and each process needs one of its own")

    def launcher(self) -> list[str]:
        """What comes between Python and the script: PyTorch's own engine for several processes, and nothing for one."""
        if self.processes * self.nodes == 1:
            return []
        line = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.processes), "--nnodes", str(self.nodes)]
        if self.nodes == 1:
            return [*line, "--standalone"]
        return [*line, "--rdzv-backend", "c10d", "--rdzv-endpoint", self.rendezvous, "--rdzv-id", "lora-atelier"]


def gpu_count(python: str) -> int:
    answer = subprocess.run(
        [python, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True
    )  # fmt: skip
    return int(answer.stdout.strip() or 0) if answer.returncode == 0 else 0


def train(
    server: Server, workflow: Path, settings: Sequence[str], everything: bool, as_json: bool, machines: Machines = Machines()
) -> int:
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
    several = machines.launcher()
    if machines.processes > 1 and "--cpu" not in server.options():
        machines.check(gpu_count(server.python))
    line = [server.python, *(several or ["-u"]), str(HEADLESS), str(server.comfyui), json.dumps(job), *server.options()]
    # Signals of the terminal reach the child by themselves; what reaches this process alone is handed on.
    variables = server.variables()
    if several:
        threads = max(1, (os.cpu_count() or 1) // machines.processes)
        variables |= {
            TEAM: "1",
            SHARD: str(int(machines.shard)),
            "OMP_NUM_THREADS": variables.get("OMP_NUM_THREADS", str(threads)),
        }
    stopped = False

    def stop(number: int, _: object) -> None:
        nonlocal stopped
        stopped = True
        if number == signal.SIGTERM:
            process.terminate()

    # What PyTorch's launcher says of processes that were ended belongs into the log; they speak for themselves.
    with log.open("ab") as words:
        process = subprocess.Popen(
            line, cwd=server.comfyui, env=variables, stdin=subprocess.DEVNULL, stderr=words if several else None
        )  # fmt: skip
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if several and stopped and code:
        code = 130  # the launcher has codes of its own
    if code not in (0, 130):
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]) if log.exists() else ""
        words_of_its_own = f"ComfyUI's own words are in {log}" + (f"; its last:\n{tail}" if code != 1 else "")
        print(words_of_its_own, file=sys.stderr, flush=True)  # standard output may end with a line of JSON
    return code if code in (0, 1, 130) else 1
