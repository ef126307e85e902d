"""PyTorch's own launcher (``torchrun``), whose failures end in one sentence. ``demo/train.py`` starts it with ComfyUI's Python.

    python launcher.py FILE [torchrun's own arguments]

Into ``FILE``, with ``.why`` behind it, goes why the processes have ended, where one was killed, or none has told it in ``FILE``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # what lies beside this file has names that other packages may want
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
    package = ModuleType("lora_atelier")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["lora_atelier"] = package

INTERRUPTED = 130
LOOKS_EVERY = 30.0  # s
IN_EARNEST = 2.0  # s between two signals that are not one
ANSWERS_IN = 5.0  # s; another launcher on this machine
LAST_WORDS = 5.0  # s for the system to end what is killed


def of_process(rank: int, code: int) -> str:
    """What ended the process that was the first to fail, as its launcher sees it."""
    who = f"process {rank}"
    if code >= 0:
        return f"{who} has failed (exit code {code}), and the others were ended"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
    why = "; the system does that where main memory runs out" if name == "SIGKILL" else ""
    return f"{who} was killed ({name}{why}), and the others were ended. The same command goes on from what was kept"


def first_of(failures: Mapping[int, Any]) -> int:
    """Rank of the process whose failure came first; ``failures``: torch's ``ProcessFailure`` by rank.

    They have whole seconds, and those that the launcher has ended (SIGTERM) are among them. Of two that end at once, one that
    was killed is the cause of the other's error.
    """
    start = min(int(one.timestamp) for one in failures.values())

    def order(rank: int) -> tuple[bool, bool, int, int]:
        one = failures[rank]
        asked = one.exitcode == -signal.SIGTERM
        return asked or int(one.timestamp) > start + 1, one.exitcode >= 0, int(one.timestamp), rank

    return min(failures, key=order)


def of_error(error: BaseException, nodes: int, began: bool) -> str:
    """Why the launcher itself has failed; ``began``: whether it had come to start the processes."""
    from torch.distributed import DistError
    from torch.distributed.elastic.rendezvous import RendezvousError

    first, said = error, [str(error)]
    while (error := error.__cause__ or error.__context__) is not None:  # type: ignore[assignment]
        said.append(str(error))
    words = "; ".join(dict.fromkeys(one.strip().splitlines()[0].rstrip(".") for one in said if one.strip()))[:600]
    words = words or type(first).__name__
    if nodes > 1 and not began:
        return (
            f"the machines did not meet ({words}). Give each the same --rendezvous, a port of one of them that all can reach and "
            "no other program has, and the same --nodes, and start them within ten minutes"
        )
    if nodes > 1 and isinstance(first, (RendezvousError, DistError)):
        return f"the machine at the rendezvous is gone ({words}). The same command on each goes on from what was kept"
    return f"PyTorch's launcher has failed ({words})"


def value_of(line: list[str], option: str, other: str = "") -> str:
    return line[line.index(option) + 1] if option in line else other


def meet(line: list[str]) -> str:
    """Makes ``line`` join a meeting that another launcher on this machine holds, where it holds the port by now; and says what
    the person has to know before: a refusal."""
    from lora_atelier.demo.machines import Machines, is_free, is_here

    place = value_of(line, "--rdzv-endpoint")
    host, port = Machines(1, 2, place).place()
    if not is_here(host) or is_free(port):
        return ""
    conf = line.index("--rdzv-conf") + 1
    line[conf] = line[conf].replace("is_host=true", "is_host=false")
    return "" if answers(host, port) else (
        f"another program has port {port}, at which the machines were to meet on this one. Give each a --rendezvous with another "
        "port, the same one"
    )  # fmt: skip


def answers(host: str, port: int) -> bool:
    """Whether a launcher holds a meeting there. What is no launcher may say nothing at all, which torch waits for without end."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    found: list[object] = []

    def ask() -> None:
        with suppress(Exception):
            found.append(TCPStore(host, port, is_master=False, timeout=timedelta(seconds=ANSWERS_IN), wait_for_workers=False))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWERS_IN)
    return bool(found)


def end_processes() -> None:
    """Those that this one has started, and theirs."""
    import psutil  # type: ignore[import-untyped]

    there = psutil.Process().children(recursive=True)
    for process in there:
        with suppress(psutil.Error, OSError):
            process.kill()
    psutil.wait_procs(there, timeout=LAST_WORDS)


def listen_to_signals() -> None:
    """Ctrl-C once more ends the processes at once. PyTorch's launcher takes each signal for a request to let them end, twice
    thirty seconds; its handlers stay as they are, and a thread hears beside them what comes."""
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)

    def listen(_: socket.socket) -> None:  # keeps the other end open
        asked = 0.0
        while heard := ears.recv(1):
            if asked and heard[0] == signal.SIGINT and time.monotonic() - asked > IN_EARNEST:
                with suppress(Exception):
                    end_processes()
                os._exit(INTERRUPTED)
            asked = asked or time.monotonic()

    threading.Thread(target=listen, args=(mouth,), daemon=True).start()


def end_with_parent() -> None:
    """Where who has started this is killed, nobody else would end it (Linux: PR_SET_PDEATHSIG)."""
    parent = os.getppid()
    with suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:  # killed just before
        sys.exit(INTERRUPTED)


def stay_alert() -> None:
    """The launcher's own connections, which come later, notice a machine that is lost, too."""
    from lora_atelier.training.performance.team import keep_alive

    while True:
        with suppress(Exception):
            keep_alive()
        time.sleep(LOOKS_EVERY)


def main(line: list[str]) -> int:
    end_with_parent()
    listen_to_signals()
    told, line = Path(line[0]), line[1:]
    try:
        code, why = launch(line, told)
    except KeyboardInterrupt:  # before torch listens
        return INTERRUPTED
    if why:
        with suppress(OSError):
            Path(f"{told}.why").write_text(why, encoding="utf-8")
    return code


def launch(line: list[str], told: Path) -> tuple[int, str]:
    """Exit code, and why; empty where a process has said it."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    nodes, began = int(value_of(line, "--nnodes", "1")), False

    def notice(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal began
        began = began or (event == "subprocess.Popen" and "TORCHELASTIC_RUN_ID" in (arguments[3] or ()))

    sys.addaudithook(notice)
    try:
        if nodes > 1:
            if why := meet(line):
                return 1, why
            if mine := os.environ.get("PET_LOCAL_ADDR") or value_of(line, "--local-addr"):
                print(f"To the others this machine is {mine}; PET_LOCAL_ADDR names another address of it.", flush=True)
            threading.Thread(target=stay_alert, daemon=True).start()
        run(line)
        return 0, ""
    except SignalException:
        end_processes()
        return INTERRUPTED, ""
    except ChildFailedError as error:
        rank = first_of(error.failures)
        exitcode = error.failures[rank].exitcode
        print(error, file=sys.stderr)
        why = of_process(rank, exitcode) if exitcode < 0 or not told.exists() else ""
        return INTERRUPTED if exitcode == INTERRUPTED else 1, why
    except Exception as error:
        import traceback

        traceback.print_exc()
        return 1, of_error(error, nodes, began) if not told.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
