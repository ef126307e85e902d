"""``studio.py train``: a workflow up to its training and grid, without a browser and without a server. Standard library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import prompt
from .machines import ALONE, MEETING, Machines
from .server import Server

TEAM = "LORA_ATELIER_TEAM"  # by which the trainer knows that the processes around it are its own
SHARD = "LORA_ATELIER_SHARD"  # whether each of them shall hold a part of the model only
HEADLESS = Path(__file__).with_name("headless.py")


def gpu_count(python: str) -> int:
    answer = subprocess.run(
        [python, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True
    )  # fmt: skip
    return int(answer.stdout.strip() or 0) if answer.returncode == 0 else 0


def train(
    server: Server, workflow: Path, settings: Sequence[str], everything: bool, as_json: bool, machines: Machines = ALONE
) -> int:
    """Runs the workflow in a process of ComfyUI's that listens to nobody; gives 0 (done), 1 (failed) or 130 (interrupted).

    ``settings``: texts as ``prompt.setting_of`` reads them. WorkflowError for what can be told before ComfyUI is started.
    """
    prompt.read(workflow)
    log = server.base / "user" / f"train-{time.strftime('%Y%m%d-%H%M%S')}-{server.port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    told = log.with_suffix(".told")
    aside = Path(f"{told}.why")
    job = {
        "workflow": str(workflow.resolve()), "set": list(map(prompt.setting_of, settings)), "everything": everything,
        "log": str(log), "told": str(told),
    }  # fmt: skip
    several = machines.launcher(told)
    if machines.processes > 1:
        machines.check(None if "--cpu" in server.options() else gpu_count(server.python))
    line = [server.python, *(several or ["-u"]), str(HEADLESS), str(server.comfyui), json.dumps(job), *server.options()]
    variables = server.variables()
    if several:
        threads = max(1, (os.cpu_count() or 1) // machines.processes)
        variables |= {
            TEAM: "1",
            SHARD: str(int(machines.shard)),
            "OMP_NUM_THREADS": variables.get("OMP_NUM_THREADS", str(threads)),
            **machines.variables(),
            # A process that NCCL's own watch ends could keep nothing; the pack's notices a lost one as well.
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": variables.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"),
        }
    if machines.nodes > 1:
        print(f"{machines.nodes} machines meet at {machines.rendezvous}; {MEETING // 60} minutes are theirs.", flush=True)
    code, stopped = _run(line, server.comfyui, variables, log, bool(several))
    try:
        result = json.loads(told.read_text(encoding="utf-8")) if told.exists() else None
        why = aside.read_text(encoding="utf-8") if aside.exists() else "" if result is not None else _ended_by(code)
    except ValueError:  # of a disk that is full
        result, why = None, _ended_by(code)
    finally:
        told.unlink(missing_ok=True)
        aside.unlink(missing_ok=True)
    if several and stopped and code:
        code = 130  # the launcher has codes of its own
    if code not in (0, 130):
        if why and result is None:
            print(f"\nstudio.py train stopped: {why}", flush=True)
        elif why:  # what the others have said follows from it
            print(f"The cause: {why}", file=sys.stderr, flush=True)
        print(f"ComfyUI's own words are in {log}", file=sys.stderr, flush=True)
    if as_json:
        empty: dict[str, Any] = {"success": not code, "loras": [], "grids": []}  # where another machine's process leads
        said = {**empty, **(result or {}), **({"error": why} if why and code not in (0, 130) else {}), "success": not code}
        print(json.dumps(said, ensure_ascii=False), flush=True)
    return code if code in (0, 1, 130) else 1


def _run(line: list[str], folder: Path, variables: dict[str, str], log: Path, several: bool) -> tuple[int, bool]:
    """(exit code of the process, whether it was to stop before its end).

    Signals of the terminal reach a single process by themselves. PyTorch's launcher has a session of its own, since it would
    end at a hang-up that is to be ignored (``nohup``); it gets what is not.
    """
    process: subprocess.Popen[bytes] | None = None
    stopped = False

    def stop(number: int, _: object) -> None:
        nonlocal stopped
        stopped = True
        # On Windows a console tells all its processes by itself.
        if process is not None and os.name != "nt" and (several or number != signal.SIGINT):
            process.send_signal(number)

    before: dict[int, Any] = {
        getattr(signal, name): None for name in ("SIGINT", "SIGTERM", "SIGHUP")
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN
    }  # fmt: skip
    for number in before:
        before[number] = signal.signal(number, stop)
    try:
        # What the launcher says of processes that were ended belongs into the log; they speak for themselves.
        with log.open("ab") as words:
            process = subprocess.Popen(
                line, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stderr=words if several else None,
                start_new_session=several and os.name != "nt",
            )  # fmt: skip
        if stopped:
            process.terminate()
        return process.wait(), stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended_by(code: int) -> str:
    """Why a process says nothing any more."""
    if code == -signal.SIGTERM:
        return "it was ended before it could begin"
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        why = "; the system does that where main memory runs out" if name == "SIGKILL" else ""
        return f"its process was killed ({name}{why}); the same command goes on from what was kept"
    return f"ComfyUI ended with exit code {code}; the end of its log says why"
