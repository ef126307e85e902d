"""PyTorch's own launcher (``torchrun``), whose failures end in one sentence. ``demo/train.py`` starts it with ComfyUI's Python.

    python launcher.py FILE [torchrun's own arguments]

Into ``FILE``, with ``.why`` behind it, goes why the processes have ended, where one was killed, or none has told it in ``FILE``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":  # what lies beside this file has names that other packages may want
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
    package = ModuleType("lora_atelier")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["lora_atelier"] = package

INTERRUPTED = 130
LOOKS_EVERY = 30.0  # s


def of_process(rank: int, code: int) -> str:
    """What ended the process that was the first to fail, as its launcher sees it."""
    who = f"process {rank}"
    if code >= 0:
        return f"{who} has failed (exit code {code}), and the others were ended"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
    why = "; the system does that where main memory runs out" if name == "SIGKILL" else ""
    return f"{who} was killed ({name}{why}), and the others were ended. The same command goes on from what was kept"


def of_meeting(error: BaseException) -> str:
    """Why there are no processes."""
    said = [str(error)]
    while (error := error.__cause__ or error.__context__) is not None:  # type: ignore[assignment]
        said.append(str(error))
    words = "; ".join(dict.fromkeys(one.strip().splitlines()[0].rstrip(".") for one in said if one.strip()))
    kind = "the machines did not meet"
    return (
        f"{kind} ({words[:600]}). Give each the same --rendezvous, a port of one of them that all can reach and no other program "
        "has, and the same --nodes, and start them within ten minutes"
    )


def children() -> list[int]:
    """Processes that this one has started and that are still there (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            if int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def stay_alert() -> None:
    """The launcher's own connections, which come later, notice a machine that is lost, too."""
    from lora_atelier.training.performance.team import keep_alive

    while True:
        keep_alive()
        time.sleep(LOOKS_EVERY)


def main(line: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    with suppress(Exception):  # where who has started this is killed, nobody else would end it (Linux: PR_SET_PDEATHSIG)
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    told, killed = Path(line[0]), False
    if "--rdzv-endpoint" in line:
        threading.Thread(target=stay_alert, daemon=True).start()
    try:
        run(line[1:])
        return 0
    except SignalException:  # once more, while the processes were keeping what was learnt
        for process in children():
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        return INTERRUPTED
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        killed = first.exitcode < 0
        code, why = INTERRUPTED if first.exitcode == INTERRUPTED else 1, of_process(rank, first.exitcode)
        print(error, file=sys.stderr)
    except Exception as error:
        import traceback

        traceback.print_exc()
        code, why = 1, of_meeting(error)
    if killed or not told.exists():
        with suppress(OSError):
            Path(f"{told}.why").write_text(why, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
