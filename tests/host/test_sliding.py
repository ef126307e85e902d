"""The template "A slider from prompts", from pictures that the model draws to a grid from -2 to 2, on a tiny model."""

from __future__ import annotations

import json
import shutil

from lora_atelier.demo import sliding, workflow
from lora_atelier.tests.host import support
from lora_atelier.training.grid.pages import KEY
from PIL import Image

SHORT = {
    "CheckpointLoaderSimple": {"ckpt_name": support.CHECKPOINTS["sd3"]},
    "RenderRegularisation": {"count": 2, "steps": 1, "width": 64, "height": 64, "resolution": 64},
    "ConfigureLoRA": {"max_steps": 3, "save_every_steps": 0, "name": "sliding", "optimizer": "AdamW", "learning_rate": 1e-2},
    "TrainLoRA": {"preview_steps": 0},
    "EpochWeightGrid": {"steps": 1, "width": 64, "height": 64, "prompts": "a photo of a woman"},
}


def test_a_slider_is_made_without_a_picture_of_ones_own(host: support.Host) -> None:
    shutil.rmtree(host.base / sliding.FOLDER, ignore_errors=True)
    stored = json.loads((support.ROOT / "workflows" / f"{sliding.TITLE}.json").read_text(encoding="utf-8"))
    graph = host.graph()
    graph.prompt = workflow.to_prompt(stored, host.server.object_info())
    for node in graph.prompt.values():
        changes = SHORT.get(node["class_type"], {})
        assert changes.keys() <= node["inputs"].keys()
        node["inputs"].update(changes)
    (slider,) = [key for key, node in graph.prompt.items() if node["class_type"] == "SliderDataset"]
    (grid,) = [key for key, node in graph.prompt.items() if node["class_type"] == "EpochWeightGrid"]
    entry = host.run(graph)
    told = entry["outputs"][slider]["text"][0]
    assert "from 'a photo of a very young person' (-1) to 'a photo of a very old person' (1)" in told
    assert len(list((host.base / sliding.FOLDER).glob("*.png"))) == 2
    (page,) = host.server.pictures(entry, grid)
    with Image.open(page) as picture:
        facts = json.loads(picture.info[KEY])
    assert facts["strengths"] == [-2, -1, 0, 1, 2]
