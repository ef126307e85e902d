"""The template that enlarges small pictures, up to the dataset, on a tiny upscale model of random weights."""

from __future__ import annotations

import json
import subprocess
import sys

from lora_atelier.demo import enlarging, workflow
from lora_atelier.tests.host import support
from PIL import Image

# In a process of its own: spandrel imports torchvision, which the servers' environment makes room for.
MODEL = """
import sys
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
save_file(RRDBNet(in_nc=3, out_nc=3, num_filters=4, num_blocks=1, scale=4).state_dict(), sys.argv[1])
"""
TAKEN = ("LoadImageTextDataSetFromFolder", "UpscaleModelLoader", "ImageUpscaleWithModel", "ImageScaleBy", "DatasetFromNodes")


def test_small_pictures_come_into_the_dataset_at_twice_their_size(host: support.Host) -> None:
    folder = support.draw_dataset(host.base / "input" / enlarging.FOLDER, side=96)
    for picture in folder.glob("*.png"):
        picture.with_suffix(".txt").write_text(f"ohwx, {picture.stem}", encoding="utf-8")
    model = host.base / "models" / "upscale_models" / enlarging.UPSCALER.name
    model.parent.mkdir(parents=True, exist_ok=True)
    aid = support.ROOT / "demo" / "cpu_torch_aid"
    subprocess.run([sys.executable, "-c", MODEL, str(model)], check=True, env={"PYTHONPATH": str(aid)}, timeout=120)
    stored = json.loads((support.ROOT / "workflows" / f"{enlarging.TITLE}.json").read_text(encoding="utf-8"))
    graph = host.graph()
    whole = workflow.to_prompt(stored, host.server.object_info())
    graph.prompt = {key: node for key, node in whole.items() if node["class_type"] in TAKEN}
    (data,) = [key for key, node in graph.prompt.items() if node["class_type"] == "DatasetFromNodes"]
    entry = host.run(graph)
    pictures = entry["outputs"][data]["pictures"]
    small = sorted(Image.open(path).size for path in folder.glob("*.png"))
    assert sorted(tuple(one["size"]) for one in pictures) == [(2 * width, 2 * height) for width, height in small]
    assert sorted(one["caption"] for one in pictures) == sorted(f"ohwx, {name}" for name in support.PICTURES)
