"""What surrounds a recording on a GPU, as far as it can be tried without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from lora_atelier.training import files
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.performance.recording import Mark, without_leftovers

from ...conftest import GPU

PACK = """
import sys
from types import ModuleType
sys.modules["lora_atelier"] = ModuleType("lora_atelier")
sys.modules["lora_atelier"].__path__ = [sys.argv[1]]
"""
ENDS = """
import os
from pathlib import Path
from lora_atelier.training import files
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.performance.recording import Mark
mark = Mark(Path(sys.argv[2]), "a card")
assert not mark.warning
with mark.standing():
    os._exit(3)
"""


def test_a_process_that_a_recording_has_ended_is_known_of_afterwards(tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "cache"
    assert subprocess.run([sys.executable, "-c", PACK + ENDS, str(root), str(folder)]).returncode == 3
    (left,) = folder.iterdir()
    assert str(folder) in Mark(folder, "a card").warning
    assert not Mark(folder, "another card").warning
    told = json.loads(left.read_text(encoding="utf-8"))
    for other in ("torch", "machine"):
        left.write_text(json.dumps({**told, other: "another"}), encoding="utf-8")
        assert not Mark(folder, "a card").warning
    before = time.time() - 3600  # as of a container that has another name now
    os.utime(left, (before, before))
    assert Mark(folder, "a card").warning
    left.unlink()
    assert not Mark(folder, "a card").warning


@pytest.mark.parametrize("text", ["", "[]", "{", '{"process": []}'])
def test_a_broken_mark_warns_of_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "recording-1.json").write_text(text, encoding="utf-8")
    assert not Mark(tmp_path, "a card").warning


def test_a_recording_that_goes_on_warns_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    """Another process of the same training may begin one at the same time."""
    mark = Mark(tmp_path, "a card")
    with mark.standing():
        assert len(list(tmp_path.iterdir())) == 1 and not Mark(tmp_path, "a card").warning
    with pytest.raises(KeyError), mark.standing():
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with Mark(tmp_path / "file", "a card").standing():
        pass

    def full(*_given: object) -> None:
        raise AtelierError("the disk is full")

    monkeypatch.setattr(files, "write_text", full)
    with Mark(tmp_path / "cache", "a card").standing():
        pass


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), torch.OutOfMemoryError("none")])
def test_what_a_failed_recording_has_made_is_gone_before_it_ends(error: BaseException) -> None:
    """What is still there belongs to a graph that never runs, and giving it back later ends the process."""
    made: list[weakref.ref[torch.Tensor]] = []

    def inner(x: torch.Tensor) -> None:
        y = x * 2
        made.append(weakref.ref(y))
        try:
            raise ValueError("at first")
        except ValueError:
            raise error from None

    def work() -> None:
        x = torch.ones(3, requires_grad=True)
        z = x.exp()
        made.append(weakref.ref(z))
        inner(z)

    failed: list[BaseException] = []
    without_leftovers(work, failed)
    assert failed == [error] and [one() for one in made] == [None, None]


ON_A_CARD = """
import gc
from pathlib import Path
import torch
from lora_atelier.training import files
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.performance.recording import CudaRecorder

device, way = torch.device("cuda", 0), sys.argv[3]
recorder = CudaRecorder(device, Path(sys.argv[2]))
x = torch.randn(512, 512, device=device)
out = torch.zeros_like(x)

def work():
    out.copy_((x @ x).relu())

def fails():
    kept = [x @ x, (x @ x).relu()]
    if way == "waits":
        kept[0].sum().item()
    raise KeyboardInterrupt

with recorder.aside():
    work()
for number in range(3):
    if way != "well":
        try:
            recorder.capture(fails)
            raise SystemExit("it did not fail")
        except (KeyboardInterrupt, RuntimeError):
            gc.collect()
    first, second = recorder.capture(work), recorder.capture(work)
    for graph in (first, second, first):
        x.normal_()
        graph.replay()
        assert torch.equal(out, (x @ x).relu())
        out.zero_()
    first.reset()
    second.reset()
    recorder.emptied()
print("done", torch.cuda.get_allocator_backend())
"""


@pytest.mark.skipif(GPU != "1", reason="records on an NVIDIA GPU")
@pytest.mark.parametrize("allocator", ["native", "cudaMallocAsync"])
@pytest.mark.parametrize("way", ["well", "cancelled", "waits"])
def test_a_card_records_and_goes_on_after_a_recording_that_failed(tmp_path: Path, root: Path, allocator: str, way: str) -> None:
    """Or, where torch ends the process, the next one knows of it."""
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": f"backend:{allocator}"}
    line = [sys.executable, "-c", PACK + ON_A_CARD, str(root), str(tmp_path), way]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    if way != "waits" or done.returncode >= 0:
        assert done.returncode == 0 and f"done {allocator}" in done.stdout, done.stderr
        assert not list(tmp_path.iterdir())
    else:
        assert Mark(tmp_path, torch.cuda.get_device_name(0)).warning
