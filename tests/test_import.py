"""Opening the pack's door loads nothing heavy; how long it takes is measured by ``benchmarks/import_time.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
sys.path.insert(0, {comfyui!r})
import torch, numpy, PIL.Image
from comfy_api.latest import io
before = set(sys.modules)
import asyncio, importlib.util
spec = importlib.util.spec_from_file_location("a_made_up_name", {root!r} + "/__init__.py", submodule_search_locations=[{root!r}])
pack = importlib.util.module_from_spec(spec)
sys.modules["a_made_up_name"] = pack
spec.loader.exec_module(pack)
nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
print(",".join(n.__name__ for n in nodes))
print(",".join(sorted(set(sys.modules) - before)))
"""
HEAVY = ("transformers", "bitsandbytes", "diffusers", "scipy", "onnxruntime", "cv2", "smartcrop", "lycoris", "torchvision")


def test_the_pack_opens_without_heavy_imports(comfyui: Path, root: Path) -> None:
    code = CODE.format(comfyui=str(comfyui), root=str(root))
    environment = {**os.environ, "PYTHONPATH": str(root / "demo" / "cpu_torch_aid")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    nodes, loaded = done.stdout.strip().splitlines()
    assert (
        nodes
        == "LoadDataset,DatasetFromNodes,AutoCaption,RenderRegularisation,SliderDataset,ConfigureLoRA,TrainLoRA,EpochWeightGrid"
    )
    assert not [name for name in loaded.split(",") if name.split(".")[0] in HEAVY]
