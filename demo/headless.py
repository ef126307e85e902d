"""A workflow run inside ComfyUI without its web server: no port is opened. ``studio.py train`` starts it with ComfyUI's Python.

    python headless.py COMFYUI JOB [ComfyUI's own arguments]

``JOB`` is JSON: ``{"workflow": file, "set": [[node, widget, text], ...], "everything": bool, "log": file, "told": file}``.
Into ``told`` goes what it has come to, as JSON: of the first process, or where that says nothing, of one that has failed.
ComfyUI's own words go into the log; what the pack says goes to the terminal.

Under ``torchrun`` there are several of it, each with a GPU of its own if there are GPUs: the first one does all that the workflow
asks for, and the others take part in its training.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

if __name__ == "__main__":  # ComfyUI has modules of the names that lie beside this one
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
    package = ModuleType("lora_atelier")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["lora_atelier"] = package

from lora_atelier.demo.prompt import assigned, followed, prompt_of, read, targets
from lora_atelier.demo.workflow import WorkflowError

LINE_EVERY = 5.0  # s between two lines that only count steps
COUNTS_STEPS = re.compile(r": epoch \d+/\d+ · step (\d+)/(\d+) · ")
POLL = 0.2  # s
IN_EARNEST = 2.0  # s between two signals that are not one
# Some machines have these variables set for programs of others.
TEAM = os.environ.get("LORA_ATELIER_TEAM") == "1"
RANK, SIZE = (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))) if TEAM else (0, 1)
BESIDE = TEAM and os.environ.get("LOCAL_RANK", "0") != "0"  # another process on this machine says what happened elsewhere
OF_OTHERS = " of this training has "  # in what the pack says of another process
WHO = f" in process {RANK}" if RANK else ""
INTERRUPTED = 130  # exit code
LONGEST = 400  # letters of a line on the terminal


class Terminal(logging.Handler):
    """What the pack logs, on the terminal; of lines that count steps one in a few seconds, and the last."""

    def __init__(self, out: IO[str]):
        super().__init__(logging.INFO)
        self.out, self.said = out, -LINE_EVERY

    def emit(self, record: logging.LogRecord) -> None:
        # Tables, and every setting of a recipe, are for the log.
        line = "\n".join(one[:LONGEST] for one in record.getMessage().splitlines() if one.strip() and not one.startswith("| "))
        now = time.monotonic()
        counts = COUNTS_STEPS.search(line)
        if counts and counts[1] != counts[2] and now - self.said < LINE_EVERY:
            return
        if counts:
            self.said = now
        self.say(f"Warning: {line}" if record.levelno >= logging.WARNING else line)

    def say(self, line: str) -> None:
        left = f"{line}\n".encode("utf-8", "replace")
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more: what trains goes on
            while left:  # without a buffer, since a signal may say something in the middle of this
                left = left[os.write(self.out.fileno(), left) :]


class Host:
    """ComfyUI in this process, with its packs, and without its server listening."""

    def __init__(self, comfyui: Path, arguments: list[str]):
        sys.path.insert(0, str(comfyui))
        sys.argv = [str(comfyui / "main.py"), *arguments]
        # What ComfyUI offers to programs that have it within them: all but the listening is set up, a worker waits for prompts.
        self.loop, self.server, _ = importlib.import_module("main").start_comfyui()

    async def object_info(self) -> dict[str, Any]:
        """The answer to GET /object_info."""
        route = next(one for one in self.server.routes if getattr(one, "path", "") == "/object_info")
        answer = await route.handler(None)
        info: dict[str, Any] = json.loads(answer.body)
        return info

    async def run(self, prompt: dict[str, Any], wanted: list[str] | None, extra: dict[str, Any]) -> dict[str, Any]:
        """The history entry of the prompt, well or not; WorkflowError with ComfyUI's own sentences if it cannot be begun."""
        execution = importlib.import_module("execution")
        number = str(uuid.uuid4())
        sound, error, outputs, problems = await execution.validate_prompt(number, prompt, wanted)
        said = _refusals(prompt, error, problems)
        if not sound or said:  # a part of a workflow is no workflow
            raise WorkflowError("\n".join(said) or "ComfyUI refuses the workflow.")
        queue = self.server.prompt_queue
        queue.put((0, number, prompt, {**extra, "client_id": "studio", "create_time": int(time.time() * 1000)}, outputs, {}))
        while not (entry := queue.get_history(prompt_id=number).get(number)):
            with contextlib.suppress(asyncio.TimeoutError):  # what would go to a page
                await asyncio.wait_for(self.server.messages.get(), POLL)
        found: dict[str, Any] = entry
        return found


def _refusals(prompt: dict[str, Any], error: Any, problems: dict[str, Any]) -> list[str]:
    said = [
        f"{prompt[key]['class_type']} (node {key}): {_sentence(one, prompt[key]['inputs'])}"
        for key, found in problems.items() for one in found.get("errors", [])
    ]  # fmt: skip
    if not said and isinstance(error, dict):
        said = [f"{error.get('message', '')} {error.get('details', '')}".strip()]
    return list(dict.fromkeys(said))


def _sentence(problem: dict[str, Any], inputs: dict[str, Any]) -> str:
    message, details = problem.get("message", ""), problem.get("details", "")
    if problem.get("type") == "custom_validation_failed" and " - " in details:  # the node's own sentence says it all
        sentence = str(details).partition(" - ")[2]
        named = sentence.partition(":")[0] in inputs  # and the widget itself; the host names the first of several
        return sentence if named else str(details)
    return ": ".join(filter(None, (message, details)))


def found_files(entry: dict[str, Any], prompt: dict[str, Any], output: Path) -> dict[str, list[str]]:
    """The LoRA files that the pack has handed on in this process, and the grid's pages."""
    loras: list[Path] = []
    for name, module in list(sys.modules.items()):
        if name.endswith(".training.runs.run") and hasattr(module, "SAVED_LORAS"):
            loras = module.SAVED_LORAS.paths()
    pages = [
        str(output / one.get("subfolder", "") / one["filename"])
        for key, found in entry.get("outputs", {}).items()
        if prompt.get(key, {}).get("class_type") == "EpochWeightGrid"
        for one in found.get("images", [])
    ]  # fmt: skip
    return {"loras": list(map(str, loras)), "grids": pages}


def problem_of(entry: dict[str, Any]) -> tuple[str, bool]:
    """(why an entry is not a success, or nothing; whether it was interrupted)."""
    status = entry.get("status") or {}
    for name, data in status.get("messages", []):
        if name == "execution_error":
            return (
                f"{data.get('node_type')} (node {data.get('node_id')}): {str(data.get('exception_message', '')).strip()}",
                False,
            )
        if name == "execution_interrupted":
            return "interrupted; what was learnt is kept, and the same command goes on from there", True
    return ("" if status.get("status_str") == "success" else f"ended without success: {status}"), False


def run_job(host: Host, job: dict[str, Any], terminal: Terminal) -> tuple[int, dict[str, Any]]:
    """(exit code, what it has come to). Several processes meet first, so that each hears where another one cannot begin, and stay
    until the first one is through.
    """
    if SIZE == 1:
        return _run_job(host, _planned(host, job), terminal, None)
    end = ".nodes.train_lora"
    pack = next((name.removesuffix(end) for name in list(sys.modules) if name.endswith(end)), "")  # as ComfyUI calls it
    if not pack:
        raise WorkflowError(f"ComfyUI has not loaded LoRA Atelier; {job['log']} says why.")
    team = importlib.import_module(f"{pack}.training.performance.team")
    plan, why = None, ""
    try:
        team.team()
        try:
            plan = _planned(host, job)
        except Exception as error:
            why = str(error) or type(error).__name__
            raise
        finally:
            team.TURNS.meet(plan.ends if plan else [], why)
    except ValueError as error:  # of which all processes say the same
        raise WorkflowError(str(error)) from error
    assert plan is not None
    try:
        code, result = _run_job(host, plan, terminal, team)
        if code:
            team.TURNS.fail(result["error"], stopped=code == INTERRUPTED)
    except Exception as error:
        _say_why(error, job, terminal)
        team.TURNS.fail(str(error), stopped=False)
        code, result = 1, _failed(error)
    team.TURNS.end()
    return code, result


@dataclass(frozen=True)
class Plan:
    """What of a workflow is run, in this process."""

    prompt: dict[str, Any]
    wanted: list[str] | None
    extra: dict[str, Any]
    part: dict[str, Any]
    """What of the prompt its trainings need."""
    ends: list[str]
    """The nodes that train."""
    started: float


def _planned(host: Host, job: dict[str, Any]) -> Plan:
    started = time.monotonic()
    canvas = read(Path(job["workflow"]))
    info = host.loop.run_until_complete(host.object_info())
    prompt = assigned(prompt_of(canvas, info), info, job["set"])
    wanted = targets(prompt, job["everything"])
    extra = {"extra_pnginfo": {"workflow": canvas}} if "nodes" in canvas else {}
    part, ends = followed(prompt, wanted) if SIZE > 1 else (prompt, [])
    return Plan(prompt, wanted, extra, part, ends, started)


def _run_job(host: Host, plan: Plan, terminal: Terminal, team: Any) -> tuple[int, dict[str, Any]]:
    prompt = plan.part if RANK else plan.prompt

    def run(nodes: list[str] | None) -> dict[str, Any]:
        found: dict[str, Any] = host.loop.run_until_complete(host.run(prompt, nodes, plan.extra))
        return found

    if not RANK:
        entry = run(plan.wanted)
    elif len(plan.ends) < 2:
        entry = run(plan.ends)
    else:  # the first process says which of them begins, since each host may take another order
        entry = {"status": {"status_str": "success"}}
        while not problem_of(entry)[0] and (node := team.TURNS.next()):
            entry = run([node])
    problem, interrupted = problem_of(entry)
    folder_paths = importlib.import_module("folder_paths")
    result: dict[str, Any] = {
        "success": not problem, **found_files(entry, prompt, Path(folder_paths.get_output_directory())),
        "seconds": round(time.monotonic() - plan.started, 1),
    }  # fmt: skip
    if problem:
        if not (BESIDE and OF_OTHERS in problem):
            terminal.say(f"\nstudio.py train stopped{WHO}: {problem}")
        result["error"] = problem
    return (INTERRUPTED if interrupted else 1 if problem else 0), result


def _failed(error: BaseException) -> dict[str, Any]:
    return {"success": False, "error": str(error), "loras": [], "grids": []}


def _say_why(error: BaseException, job: dict[str, Any], terminal: Terminal) -> None:
    traceback.print_exc()
    where = "" if isinstance(error, (WorkflowError, OSError)) else f" ({type(error).__name__}; {job['log']})"
    if not (BESIDE and (OF_OTHERS in str(error) or isinstance(error, WorkflowError))):
        terminal.say(f"\nstudio.py train stopped{WHO}: {error}{where}")


def _interrupt_on_signals(terminal: Terminal) -> None:
    """The first signal is the canvas's cross, which keeps what was learnt; Ctrl-C once more ends at once.

    Not at the same moment: a terminal tells this process and the one that has started it, which hands it on.
    """
    asked = 0.0

    def stop(number: int, _: object) -> None:
        nonlocal asked
        if asked:
            if number == signal.SIGINT and time.monotonic() - asked > IN_EARNEST:
                os._exit(130)
            return
        asked = time.monotonic()
        terminal.say(
            "\nStopping; what was learnt is being kept. Once more ends at once, and what was learnt since the last save is lost."
        )
        importlib.import_module("nodes").interrupt_processing()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):  # of nohup
            signal.signal(number, stop)


def _apart(job: dict[str, Any], arguments: list[str]) -> list[str]:
    """A log, a database, a folder for what is temporary and a GPU for this one of several processes; arguments for ComfyUI.

    The GPU is chosen before torch is imported, which then sees no other.
    """
    own = int(os.environ.get("LOCAL_RANK", "0"))
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        there = [name for name in os.environ.get(variable, "").split(",") if name]
        if there or variable.startswith("CUDA"):
            os.environ[variable] = there[own] if own < len(there) else "" if there else str(own)
    if not RANK:
        return []
    log = Path(job["log"])
    job["log"] = str(log.with_name(f"{log.stem}-{RANK}{log.suffix}"))
    beside = log.with_name(f"{log.stem}-{RANK}")
    beside.mkdir(parents=True, exist_ok=True)
    database = ["--database-url", f"sqlite:///{(beside / 'comfyui.db').as_posix()}"] if "--database-url" in arguments else []
    return ["--temp-directory", str(beside), *database]


def _end_with_parent() -> None:
    """Where the process that has started this one is killed, this one is asked to stop (Linux): nobody else would end it."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main(line: list[str]) -> int:
    comfyui, job, arguments = Path(line[0]), json.loads(line[1]), line[2:]
    if SIZE > 1:
        arguments += _apart(job, arguments)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = open(job["log"], "ab", buffering=0)  # noqa: SIM115 it is this process's output from here on
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    terminal = Terminal(out)
    _end_with_parent()
    if not RANK:
        logging.getLogger("lora-atelier").addHandler(terminal)
    try:
        host = Host(comfyui, arguments)
        _interrupt_on_signals(terminal)
        code, result = run_job(host, job, terminal)
    except Exception as error:
        _say_why(error, job, terminal)
        code, result = 1, _failed(error)
    if RANK:
        if code:
            with contextlib.suppress(OSError), open(job["told"], "x", encoding="utf-8") as told:
                told.write(json.dumps({"error": result.get("error", "")}))
        return code
    if result["loras"]:
        terminal.say("\nThe LoRA files:\n  " + "\n  ".join(result["loras"]))
    if result["grids"]:
        terminal.say("The grid of epochs and strengths:\n  " + "\n  ".join(result["grids"]))
    with contextlib.suppress(OSError, ValueError):  # of a full disk; what matters has been said
        place = Path(job["told"])
        if place.exists() and (code == INTERRUPTED or OF_OTHERS in result.get("error", "")):  # then that is the cause
            result["error"] = json.loads(place.read_text(encoding="utf-8"))["error"]
        place.write_text(json.dumps(result), encoding="utf-8")
    return code


if __name__ == "__main__":
    done = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(done)  # the host's worker waits for prompts without end
