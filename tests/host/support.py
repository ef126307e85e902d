"""Real servers shared by all tests of a session, and the small graphs that they are asked to run."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_atelier.demo.server import Server, error_of, make_base
from lora_atelier.tests import tiny_models
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = {
    "new": Path(os.environ.get("ATELIER_COMFYUI", ROOT / ".studio" / "hosts" / "comfyui-0.30.0")),
    "old": Path(os.environ.get("ATELIER_COMFYUI_OLD", ROOT / ".studio" / "hosts" / "comfyui-0.3.75")),
}
# The canvas that the old host pins; the environment holds the new one's, which a server takes by itself.
OLD_FRONTEND = ROOT / ".studio" / "frontends" / "0.3.75" / "comfyui_frontend_package" / "static"
# The stock checkpoints of the tests, as the combo of a loader lists them; the last is what the shipped workflow asks for.
CHECKPOINTS = {"sd15": "tiny-sd15.safetensors", "sd3": "tiny-sd3.safetensors", "demo": "lora-atelier-demo.safetensors"}
SOURCES = {"sd15": "sd15", "sd3": "sd3", "demo": "sd3"}
PICTURES = {"red square": "red", "blue circle": "blue", "green square": "green", "black circle": "black"}
NODES = (
    "LoadDataset", "DatasetFromNodes", "AutoCaption", "RenderRegularisation", "SliderDataset", "ConfigureLoRA", "TrainLoRA",
    "EpochWeightGrid",
)  # fmt: skip
# A first line of these starts something that a person must not see in the log of a good run.
TROUBLE = re.compile(r"Traceback|lora key not loaded|clip missing|unet missing|unet unexpected|Missing VAE|Cannot import", re.I)


@dataclass
class Host:
    """A running ComfyUI and the folders it works in."""

    name: str
    server: Server
    _info: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.server.base

    @property
    def loras(self) -> Path:
        return self.base / "models" / "loras"

    @property
    def info(self) -> dict[str, Any]:
        """``/object_info`` as it was when first asked; the combos of files in it grow old, their shape does not."""
        if not self._info:
            self._info = self.server.object_info()
        return self._info

    def is_alive(self) -> bool:
        return self.server.process is not None and self.server.process.poll() is None

    def graph(self) -> Graph:
        return Graph(self.info)

    @contextmanager
    def watched_log(self) -> Iterator[list[str]]:
        """A list that holds, after the block, the lines which the server printed during it."""
        start, lines = len(self.server.log()), []
        yield lines
        lines.extend(self.server.log()[start:].splitlines())

    def run(self, graph: Graph, timeout: float = 300) -> dict[str, Any]:
        """Run to a good end, without a troublesome line in the log, and return the history entry."""
        with self.watched_log() as lines:
            entry = self.server.run(graph.prompt, timeout=timeout)
        bad = [line for line in lines if TROUBLE.search(line)]
        assert not bad, "\n".join(bad)
        return entry

    def fail(self, graph: Graph, timeout: float = 120) -> Failure:
        """Run to a bad end, and return what the person is told on the canvas.

        A graph with several output nodes is refused in part: the server names the nodes that cannot run, and runs the others.
        """
        data = {"prompt": graph.prompt, "client_id": self.server.client_id}
        try:
            answer = self.server.post("/prompt", data)
        except urllib.error.HTTPError as refused:
            return Failure.refused(json.loads(refused.read()))
        entry = self.server.wait(answer["prompt_id"], timeout)
        if answer["node_errors"]:
            return Failure.refused(answer)
        assert error_of(entry) is not None, "the graph ran well where it should have failed"
        return Failure.failed(entry)


@dataclass
class Failure:
    """The message on a node."""

    node: str
    """Class of the node that shows it."""
    message: str
    times: int = 1
    """How many messages the node shows."""

    @classmethod
    def refused(cls, answer: dict[str, Any]) -> Failure:
        errors = [node for node in answer["node_errors"].values() if node["errors"]]
        assert len({node["class_type"] for node in errors}) == 1, f"one node is to blame: {answer}"
        told = [f"{error['message']}: {error['details']}" for error in errors[0]["errors"]]
        return cls(errors[0]["class_type"], told[0], len(told))

    @classmethod
    def failed(cls, entry: dict[str, Any]) -> Failure:
        messages = dict(entry["status"]["messages"])
        told = messages["execution_error"]
        return cls(told["node_type"], told["exception_message"])


class Graph:
    """An API prompt in the making. Widgets that are not given take the default that the server tells for them."""

    def __init__(self, info: dict[str, Any]):
        self.info, self.prompt = info, {}

    def add(self, kind: str, **inputs: Any) -> str:
        """Add a node and return its id. A link is given as ``self.out(id, index)``; ``...`` leaves a required input out."""
        values = {name: value for name, value in self.defaults(kind).items()} | inputs
        node_id = str(len(self.prompt) + 1)
        self.prompt[node_id] = {"class_type": kind, "inputs": {k: v for k, v in values.items() if v is not ...}}
        return node_id

    def defaults(self, kind: str) -> dict[str, Any]:
        found = {}
        for name, spec in self.info[kind]["input"].get("required", {}).items():
            options = spec[1] if len(spec) > 1 else {}
            choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
            if "default" in options or choices:
                found[name] = options.get("default", choices[0] if choices else None)
        return found

    @staticmethod
    def out(node_id: str, index: int = 0) -> list[Any]:
        return [node_id, index]


def load_checkpoint(graph: Graph, family: str) -> tuple[list, list, list]:
    """Links to MODEL, CLIP and VAE."""
    node = graph.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINTS[family])
    return graph.out(node, 0), graph.out(node, 1), graph.out(node, 2)


def add_sampling(graph: Graph, model: list, clip: list, vae: list, family: str, *, prefix: str, side: int = 64) -> str:
    """The stock way from a text to a saved picture; the id of the saving node."""
    text = graph.add("CLIPTextEncode", clip=clip, text="a red square")
    empty = graph.add("EmptyLatentImage" if family == "sd15" else "EmptySD3LatentImage", width=side, height=side, batch_size=1)
    latent = graph.add(
        "KSampler", model=model, positive=graph.out(text), negative=graph.out(text), latent_image=graph.out(empty),
        seed=5, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    picture = graph.add("VAEDecode", samples=graph.out(latent), vae=vae)
    return graph.add("SaveImage", images=graph.out(picture), filename_prefix=prefix)


@dataclass
class Atelier:
    """The five nodes in a graph: their ids, to look up links and outputs."""

    graph: Graph
    dataset: str
    caption: str
    config: str
    train: str
    grid: str
    model: list
    clip: list
    vae: list


def build_atelier(graph: Graph, family: str, name: str, **changes: dict[str, Any]) -> Atelier:
    """The whole path on a tiny model: 4 pictures at 64 px, 2 epochs, a grid of 2 x 2 cells and a control.

    ``changes`` are keyed by node class and hold widgets, links, or ``...`` for an input that is left out.
    """
    links = dict(zip(("model", "clip", "vae"), load_checkpoint(graph, family), strict=True))

    def add(kind: str, **inputs: Any) -> str:
        return graph.add(kind, **inputs | changes.get(kind, {}))

    dataset = add("LoadDataset", folder="input/shapes", resolution=64, bucket_step=8, batch_size=2)
    caption = add("AutoCaption", dataset=graph.out(dataset), captioner="file name")
    config = add("ConfigureLoRA", name=name, rank=2, alpha=2.0, epochs=2, learning_rate=1e-2, schedule="constant")
    train = add(
        "TrainLoRA", **links, dataset=graph.out(caption), config=graph.out(config), preview_prompt="a red square",
        preview_steps=1, preview_cfg=1.0,
    )  # fmt: skip
    grid = add(
        "EpochWeightGrid", **links, epochs=graph.out(train, 0), prompts="a red square\na blue circle", strengths="0.5, 1.0",
        steps=2, cfg=1.0, width=64, height=64, seed=3,
    )  # fmt: skip
    return Atelier(graph, dataset, caption, config, train, grid, **links)


def draw_dataset(folder: Path, side: int = 96) -> Path:
    """Four pictures named after what they show, two of them wide: two buckets, so an epoch of batches of two has two steps."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, colour) in enumerate(PICTURES.items()):
        picture = Image.new("RGB", (2 * side if i >= 2 else side, side), "white")
        draw = ImageDraw.Draw(picture)
        box = (side // 6, side // 6, side - side // 6, side - side // 6)
        (draw.rectangle if "square" in name else draw.ellipse)(box, fill=colour)
        picture.save(folder / f"{name}.png")
    return folder


_running: dict[str, Host] = {}


def host(name: str) -> Host:
    """The session's server of that name, started when first asked for, started again if a test ended it; ends with Python."""
    if name not in _running:
        base = make_base(Path(tempfile.mkdtemp(prefix=f"atelier-{name}-")), pack=ROOT)
        for family, file in CHECKPOINTS.items():
            tiny_models.link(tiny_models.cached(SOURCES[family]), base / "models" / "checkpoints" / file)
        draw_dataset(base / "input" / "shapes")
        draw_dataset(base / "input" / "openmoji", side=128)  # where the shipped workflow looks
        if not _running:
            atexit.register(stop_all)
        old = Path(os.environ.get("ATELIER_OLD_FRONTEND", OLD_FRONTEND))
        frontend = old if name == "old" and old.is_dir() else None
        _running[name] = Host(name, Server(sys.executable, COMFYUI[name], base, frontend=frontend))
    if not _running[name].is_alive():
        _running[name].server.start()
    return _running[name]


def running() -> list[Host]:
    """The servers that are up now."""
    return [found for found in _running.values() if found.is_alive()]


def stop_all() -> None:
    """End every server of the session and remove its folders."""
    while _running:
        _, found = _running.popitem()
        found.server.stop()
        shutil.rmtree(found.base, ignore_errors=True)
