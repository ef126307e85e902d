"""The aid lets a CPU torch live beside PyPI's torchvision and torchaudio, and stays out of the way otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def python(root: Path, tmp_path: Path) -> Callable[[str], str]:
    """Run code in a fresh interpreter with the aid first on ``PYTHONPATH``, and ``tmp_path`` behind it."""

    def run(code: str) -> str:
        path = os.pathsep.join([str(root / "demo" / "cpu_torch_aid"), str(tmp_path)])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_nothing_heavy_is_imported_at_start_up(python: Callable[[str], str]) -> None:
    assert python("import sys; print([name for name in ('torch', 'numpy', 'torchvision') if name in sys.modules])") == "[]"


def test_the_sitecustomize_that_it_hides_still_runs(python: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.the_other_ran = True")
    assert python("print(the_other_ran)") == "True"


def test_torchvision_and_torchaudio_can_be_imported_and_used(python: Callable[[str], str]) -> None:
    code = """
import torch, torchvision, torchaudio
from torchvision.transforms.functional import resize
print(list(resize(torch.zeros(3, 8, 8), [4, 4]).shape), list(torchaudio.functional.resample(torch.zeros(1, 100), 100, 50).shape))
"""
    assert python(code) == "[3, 4, 4] [1, 50]"
