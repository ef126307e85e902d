"""Two machines that train together: network namespaces of this one, with names that nobody knows.

PyTorch's launcher is started in each as ``studio.py train`` does it. Left out where the system lets nobody make a namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lora_atelier.training.config import to_dict
from lora_atelier.training.performance.team import MARK

from .test_team import KINDS, PICTURES, WORK, files, history, named, pictures

__all__ = ["pictures"]
pytestmark = pytest.mark.cpu_only("on a GPU it takes one for each process")
ROOT = Path(__file__).resolve().parents[2]
RUN = """
import os, sys
from pathlib import Path
from types import ModuleType
package = ModuleType("lora_atelier")
package.__path__ = [sys.argv[1]]
sys.modules["lora_atelier"] = package
from lora_atelier.demo.machines import Machines
two = Machines(1, 2, "10.77.0.1:29500")
os.environ.update(two.variables())
os.execv(sys.executable, [sys.executable, *two.launcher(Path(sys.argv[2])), sys.argv[3], sys.argv[4]])
"""


@pytest.fixture
def apart() -> Iterator[list[str]]:
    """Names of two network namespaces with a wire between them, 10.77.0.1 and 10.77.0.2."""
    if not (sys.platform.startswith("linux") and hasattr(os, "geteuid") and os.geteuid() == 0):
        pytest.skip("only root of a Linux makes network namespaces")
    if not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("ip or unshare is missing")
    own = os.getpid()
    names, ends = [f"atelier{own}{letter}" for letter in "ab"], [f"at{own}{letter}" for letter in "ab"]
    lines = [["netns", "add", name] for name in names]
    lines += [["link", "add", ends[0], "type", "veth", "peer", "name", ends[1]]]
    for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
        inside = ["netns", "exec", name, "ip"]
        lines += [["link", "set", end, "netns", name], [*inside, "addr", "add", f"10.77.0.{number}/24", "dev", end]]
        lines += [[*inside, "link", "set", "lo", "up"], [*inside, "link", "set", end, "up"]]
    try:
        for line in lines:
            made = subprocess.run(["ip", *line], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_machines_whose_names_nobody_knows_train_together(
    apart: list[str], pictures: Path, tmp_path: Path, comfyui: object
) -> None:
    model, config = KINDS["lora"]
    both = {"base": str(tmp_path / "both"), "pictures": str(pictures)}
    both["runs"] = [{"name": "lora", "model": model, "recipe": to_dict(named(2, config))}]  # type: ignore[assignment]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", MARK: "1"}
    for variable in ("PET_LOCAL_ADDR", "GLOO_SOCKET_IFNAME"):
        quiet.pop(variable, None)
    logs, processes = [tmp_path / f"{name}.log" for name in apart], []
    try:
        for number, (name, log) in enumerate(zip(apart, logs, strict=True)):
            line = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', f"nobody-{number}"]
            line += [sys.executable, "-c", RUN, str(ROOT), str(tmp_path / f"told-{number}"), str(WORK), json.dumps(both)]
            with log.open("wb") as said:
                processes.append(subprocess.Popen(line, env=quiet, stdout=said, stderr=subprocess.STDOUT))
        for process in processes:
            with suppress(subprocess.TimeoutExpired):  # the logs say why
                process.wait(timeout=300)
        words = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(words)
    finally:
        for name in apart:
            inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
            for own in inside.split():
                with suppress(OSError):
                    os.kill(int(own), signal.SIGKILL)
        for process in processes:
            process.wait()
    for address, told in zip(("10.77.0.1", "10.77.0.2"), words, strict=True):
        assert f"To the others this machine is {address};" in told
    assert [row["step"] for row in history(tmp_path / "both", "lora")] == list(range(1, 2 * PICTURES + 1))
    assert files(tmp_path / "both", "lora")
    assert (tmp_path / "both" / "runs" / "lora" / "state" / "state.safetensors").is_file()
