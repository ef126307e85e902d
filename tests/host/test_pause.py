"""The pause between captioning and training on a real server: what is edited and turned meanwhile is what is trained."""

from __future__ import annotations

import json
import shutil

from lora_atelier.demo.server import error_of
from lora_atelier.tests.host import support
from lora_atelier.tests.host.test_stopping import wait_for
from safetensors import safe_open

OURS = "/lora_atelier"
PLACE = {"folder": "input/paused", "extension": ".txt", "nested": False}


def test_what_is_edited_while_a_run_waits_is_trained(host: support.Host) -> None:
    shutil.rmtree(host.base / "input" / "paused", ignore_errors=True)
    support.draw_dataset(host.base / "input" / "paused")
    graph = host.graph()
    nodes = support.build_atelier(
        graph, "sd3", "paused", LoadDataset={"folder": "input/paused"}, AutoCaption={"pause": True},
        ConfigureLoRA={"epochs": 1}, TrainLoRA={"preview_steps": 0},
    )  # fmt: skip
    del graph.prompt[nodes.grid]
    prompt_id = host.server.queue(graph.prompt)
    (waits,) = wait_for(lambda: host.server.get(f"{OURS}/captions/waiting")["waiting"])
    assert waits["node"] == nodes.caption and waits["told"]["counts"] == ["4 captions written, 0 kept"]
    assert not list((host.loras / "lora-atelier").glob("paused*"))

    asked = host.server.post(f"{OURS}/captions/again", {"node": waits["node"], "picture": "paused/red square.png"})
    assert asked == {"caption": "red square"}
    listed = host.server.post(f"{OURS}/pictures", {"settings": {"folder": "input/paused", "resolution": 64, "bucket_step": 8}})
    red = next(one for one in listed["pictures"] if one["picture"] == "red square.png")
    edit = {"picture": red["picture"], "caption": "scarlet, by hand", "version": red["version"]}
    host.server.post(f"{OURS}/captions", {**PLACE, "edits": [edit]})
    host.server.post(f"{OURS}/pictures/turn", {**PLACE, "pictures": ["green square.png"], "quarters": 1})
    host.server.post(f"{OURS}/pictures/remove", {**PLACE, "pictures": ["blue circle.png"]})
    host.server.post(f"{OURS}/captions/go_on", {"node": waits["node"]})

    entry = host.server.wait(prompt_id, 300)
    assert error_of(entry) is None
    said = "\n".join(entry["outputs"][nodes.caption]["text"])
    assert "taken out meanwhile" in said and "blue circle.png" in said and "changed meanwhile" in said
    (file,) = (host.loras / "lora-atelier").rglob("paused.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tags = {tag for folder in json.loads(metadata["ss_tag_frequency"]).values() for tag in folder}
    assert tags == {"scarlet", "by hand", "green square", "black circle"} and metadata["ss_num_train_images"] == "3"
    assert host.server.get(f"{OURS}/captions/waiting") == {"waiting": []}


def test_a_run_that_waits_is_cancelled(host: support.Host) -> None:
    graph = host.graph()
    dataset = graph.add("LoadDataset", folder="input/shapes", resolution=64, bucket_step=8)
    graph.add("AutoCaption", dataset=graph.out(dataset), captioner="file name", pause=True)
    prompt_id = host.server.queue(graph.prompt)
    wait_for(lambda: host.server.get(f"{OURS}/captions/waiting")["waiting"])
    host.server.interrupt()
    assert "interrupted" in str(host.server.wait(prompt_id, 60)["status"]["messages"])
    assert host.server.get(f"{OURS}/captions/waiting") == {"waiting": []}
