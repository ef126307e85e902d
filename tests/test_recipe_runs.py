"""Recipes whose text encoders are too large for tests, trained for real with small ones: the shipped graph, node by node.

The others run on real servers: ``host/test_recipes.py``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_atelier.demo import workflow as canvas
from lora_atelier.tests import tiny_large, tiny_models
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.errors import AtelierError
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"resolution", "width", "height", "preview_width", "preview_height"}
SHORT = {"max_steps": 4, "sample_every_steps": 3, "preview_steps": 1, "steps": 1, "count": 2}
OURS = ("LoadDataset", "AutoCaption", "RenderRegularisation", "ConfigureLoRA", "TrainLoRA", "EpochWeightGrid")


@pytest.fixture
def base(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder around the host's own folders, all in this test's place."""
    import folder_paths

    for name in ("input", "temp", "user", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    for name in ("loras", "diffusion_models", "vae"):
        (tmp_path / "models" / name).mkdir(parents=True)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / "models" / name)], {".safetensors"}))
    return tmp_path


class Canvas:
    """A shipped workflow, small and short, run as the server would run it.

    ``loaders`` stand in for stock nodes whose files would be too large: ``{class: function of its widgets}``.
    """

    def __init__(self, stem: str, smaller: int, loaders: dict[str, Callable[..., tuple[Any, ...]]]):
        from lora_atelier.nodes import (
            auto_caption,
            configure_lora,
            epoch_weight_grid,
            load_dataset,
            render_regularisation,
            train_lora,
        )

        import nodes as stock

        modules = (auto_caption, configure_lora, epoch_weight_grid, load_dataset, render_regularisation, train_lora)
        self.ours: dict[str, Any] = {name: getattr(m, name) for name in OURS for m in modules if hasattr(m, name)}
        self.stock, self.loaders = stock.NODE_CLASS_MAPPINGS, loaders
        self.workflow = json.loads((ROOT / "workflows" / f"{stem}.json").read_text(encoding="utf-8"))
        info: dict[str, Any] = {name: node.GET_NODE_INFO_V1() for name, node in self.ours.items()}
        for node in self.workflow["nodes"]:
            if node["type"] not in info and node["type"] not in canvas.NOT_EXECUTED:
                info[node["type"]] = {"input": self.stock[node["type"]].INPUT_TYPES()}
        self.prompt = canvas.to_prompt(self.workflow, info, {("AutoCaption", "captioner"): "file name"})
        for node in self.prompt.values():
            for name, value in node["inputs"].items():
                if name in SIDES:
                    node["inputs"][name] = value // smaller
                elif name == "bucket_step":
                    node["inputs"][name] = 32
                elif SHORT.get(name) and value:
                    node["inputs"][name] = SHORT[name]
        self.set("ConfigureLoRA", max_steps=SHORT["max_steps"])
        self.done: dict[str, Any] = {}

    def set(self, kind: str, **widgets: Any) -> None:
        self.prompt[self.key(kind)]["inputs"].update(widgets)

    def key(self, kind: str) -> str:
        (key,) = [key for key, node in self.prompt.items() if node["class_type"] == kind]
        return key

    @torch.inference_mode()
    def value(self, key: str) -> tuple[Any, ...]:
        """What a node gives, once everything in front of it has run."""
        if key not in self.done:
            kind, inputs = self.prompt[key]["class_type"], self.prompt[key]["inputs"]
            values = {name: self.value(v[0])[v[1]] if isinstance(v, list) else v for name, v in inputs.items()}
            self.done[key] = self.execute(key, kind, values)
        return self.done[key]

    def execute(self, key: str, kind: str, values: dict[str, Any]) -> tuple[Any, ...]:
        if kind in self.ours:
            from comfy_api.latest import io

            hidden = {
                io.Hidden.prompt: self.prompt, io.Hidden.unique_id: key,
                io.Hidden.extra_pnginfo: {"workflow": self.workflow},
            }  # fmt: skip
            node = self.ours[kind]
            given = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden}).execute(**values).result
            lists = [output.is_output_list for output in node.GET_SCHEMA().outputs]
            assert all(len(value) == 1 for value, is_list in zip(given, lists, strict=True) if is_list), "no recipe is a sweep"
            return tuple(value[0] if is_list else value for value, is_list in zip(given, lists, strict=True))
        if kind in self.loaders:
            return self.loaders[kind](**values)
        stock = self.stock[kind]()
        return getattr(stock, stock.FUNCTION)(**values)


def draw(folder: Path, *sizes: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        noise_picture(size, 80, i).save(folder / f"portrait_{i}.png")


def sdxl(ckpt_name: str) -> tuple[Any, ...]:
    """MODEL, CLIP and VAE of a small SDXL."""
    import comfy.sd

    model = comfy.sd.load_diffusion_model(str(tiny_models.cached("sdxl_unet")))
    return model, tiny_large.sdxl_text_encoder(), comfy.sd.VAE(sd=tiny_large.sdxl_autoencoder())


def flux_text(**_widgets: Any) -> tuple[Any, ...]:
    return (tiny_large.flux_text_encoder(),)


def check_files(run: Canvas, base: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The LoRA is there, says which recipe made it, and changes every layer in the stock loader; its keys."""
    import nodes as stock

    epochs = run.value(run.key("TrainLoRA"))[0]
    name = run.prompt[run.key("ConfigureLoRA")]["inputs"]["name"]
    assert [(file.path.name, file.step) for file in epochs.files] == [(f"{name}.safetensors", SHORT["max_steps"])]
    assert not list((base / "models").rglob("*.partial"))
    with safe_open(epochs.files[0].path, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
        assert all(file.get_tensor(key).isfinite().all() for key in keys)
        assert any(file.get_tensor(key).abs().sum() > 0 for key in keys if "lora_up" in key), "something was learnt"
    assert json.loads(metadata["workflow"]) == run.workflow
    grid = run.prompt[run.key("EpochWeightGrid")]["inputs"]
    model, clip = (run.value(grid[wire][0])[grid[wire][1]] for wire in ("model", "clip"))
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        patched = stock.LoraLoader().load_lora(model, clip, f"lora-atelier/{name}/{name}.safetensors", 1.0, 1.0)
    assert "not loaded" not in caplog.text
    assert len(patched[0].patches) + len(patched[1].patcher.patches) == sum(key.endswith(".alpha") for key in keys) > 0
    return keys


def check_grid(run: Canvas, columns: int) -> None:
    """A page a prompt, a cell for each strength of each file, and one for none."""
    widgets = run.prompt[run.key("EpochWeightGrid")]["inputs"]
    pages = run.value(run.key("EpochWeightGrid"))[0]
    assert len(pages) == len(widgets["prompts"].splitlines())
    assert pages.shape[2] > columns * widgets["width"] and pages.std() > 0.05


def test_ink_and_lore(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Flux in fp8 with CLIP-L learning beside it, trained on one transformer and judged on another."""
    from lora_atelier.training import host

    for seed, name in enumerate(("flux-dev2pro-fp8", "flux1-dev")):
        tiny_large.flux(base / "models" / "diffusion_models" / f"{name}.safetensors", seed)
    tiny_large.flux_autoencoder(base / "models" / "vae" / "ae.safetensors")
    draw(base / "input" / "ink-and-lore", (60, 100), (70, 90), (64, 64), (100, 60))
    run = Canvas("recipe_1_ink_and_lore", 4, {"DualCLIPLoader": flux_text})
    with pytest.raises(AtelierError, match="choose AdamW, its full-precision twin"):
        run.value(run.key("TrainLoRA"))
    assert not list((base / "output").iterdir()) and not list((base / "user").rglob("*.safetensors")), "before any work"
    run.set("ConfigureLoRA", optimizer="AdamW")
    del run.done[run.key("ConfigureLoRA")]
    check_grid(run, 2)
    keys = check_files(run, base, caplog)
    assert {key.split("_blocks")[0].split("_text_model")[0] for key in keys} == {
        "lora_unet_double", "lora_unet_single", "lora_te1",
    }  # fmt: skip
    trained, judged = (host.Model(run.value(key)[0]) for key, n in run.prompt.items() if n["class_type"] == "UNETLoader")
    assert trained.identity() != judged.identity()
    for model in (trained, judged):
        assert model.base.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == torch.float8_e4m3fn


def test_style_guide(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("dadaptation")
    draw(base / "input" / "style-guide", (64, 64), (96, 64))
    run = Canvas("recipe_2_style_guide", 8, {"CheckpointLoaderSimple": sdxl})
    check_grid(run, 2)
    assert all(key.startswith("lora_unet_") for key in check_files(run, base, caplog)), "U-Net only"


def test_sdxl_subject(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("prodigyopt")
    draw(base / "input" / "Img" / "25_ohwx", (64, 64), (96, 64))
    run = Canvas("recipe_5_sdxl_subject", 8, {"CheckpointLoaderSimple": sdxl})
    check_grid(run, 2)
    check_files(run, base, caplog)
    assert [path.name for path in (base / "input" / "reg" / "1_man").iterdir()] == ["reg-00000.png", "reg-00001.png"]
    assert not list((base / "input" / "reg").rglob("*.txt")) and len(list((base / "input" / "Img").rglob("*.txt"))) == 2
    samples = base / "output" / "lora-atelier" / "sdxl-subject" / "samples"
    start, *more = sorted(path.name for path in samples.iterdir())
    assert start == "sdxl-subject-000000.png" and more[-1] == "sdxl-subject-step00000003.png" and len(more) == 2, "and the last"
