"""Two machines that train together: network namespaces of this one, with names that nobody knows.

PyTorch's launcher is started in each as ``studio.py train`` does it. Left out where the system lets nobody make a namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
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


def test_two_machines_whose_names_nobody_knows_learn_what_one_process_learns(
    apart: list[str], pictures: Path, tmp_path: Path, comfyui: object
) -> None:
    model, config = KINDS["lora"]
    alone = {"base": str(tmp_path / "alone"), "pictures": str(pictures)}
    alone["runs"] = [{"name": "lora", "model": model, "recipe": to_dict(named(1, config))}]  # type: ignore[assignment]
    both = {**alone, "base": str(tmp_path / "both")}
    both["runs"] = [{"name": "lora", "model": model, "recipe": to_dict(named(2, config))}]  # type: ignore[assignment]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, str(WORK), json.dumps(alone)], env=quiet, stderr=subprocess.PIPE, text=True)]
    for number, name in enumerate(apart):
        line = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', f"nobody-knows-{number}"]
        line += [sys.executable, "-c", RUN, str(ROOT), str(tmp_path / f"told-{number}"), str(WORK), json.dumps(both)]
        processes.append(subprocess.Popen(line, env={**quiet, MARK: "1"}, stderr=subprocess.PIPE, text=True))
    for process in processes:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    assert [row["step"] for row in history(tmp_path / "both", "lora")] == list(range(1, 2 * PICTURES + 1))
    expected, found = files(tmp_path / "alone", "lora"), files(tmp_path / "both", "lora")
    assert expected.keys() == found.keys() and expected
    for file, tensors in expected.items():
        for key, value in tensors.items():
            if value.is_floating_point():
                assert (found[file][key] - value).norm() <= 2e-3 * value.norm() + 1e-6, (file, key)
