"""The ground that the other tests stand on: both hosts, without a node of the pack, accept the tiny checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lora_atelier.tests.host import support
from PIL import Image


@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_stock_nodes_sample_from_a_tiny_checkpoint(host: support.Host, family: str) -> None:
    graph = host.graph()
    model, clip, vae = support.load_checkpoint(graph, family)
    saved = support.add_sampling(graph, model, clip, vae, family, prefix=f"stock-{family}")
    (picture,) = host.server.pictures(host.run(graph), saved)
    pixels = np.asarray(Image.open(picture))
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 5


def test_tiny_models_are_whole_on_the_oldest_host(comfyui_old: Path, root: Path) -> None:
    """The in-process tests of the tiny models once more, in a process that imports the old host."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(root / "tests" / "test_tiny_models.py")],
        cwd=root, env={**os.environ, "ATELIER_COMFYUI": str(comfyui_old)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
