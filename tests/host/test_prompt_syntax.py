"""Prompts with signs of ComfyUI's syntax, through a real server: a cell is what stock nodes draw of the text as it was meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lora_atelier.tests.host import support
from PIL import Image

PROMPT = "a red square (16:9), ((big)), saber \\(fate\\), [old] <x> :)"
ESCAPED = "a red square \\(16:9\\), \\(\\(big\\)\\), saber \\(fate\\), [old] <x> :\\)"


def stock(host: support.Host, file: str, prompt: str, prefix: str) -> np.ndarray:
    graph = host.graph()
    model, clip, vae = support.load_checkpoint(graph, "sd15")
    lora = graph.add("LoraLoader", model=model, clip=clip, lora_name=file, strength_model=1.0, strength_clip=1.0)
    text = graph.add("CLIPTextEncode", clip=graph.out(lora, 1), text=prompt)
    negative = graph.add("CLIPTextEncode", clip=graph.out(lora, 1), text="")
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    defaults = graph.defaults("EpochWeightGrid")
    latent = graph.add(
        "KSampler", model=graph.out(lora, 0), positive=graph.out(text), negative=graph.out(negative),
        latent_image=graph.out(empty), seed=3, steps=2, cfg=1.0, sampler_name=defaults["sampler_name"],
        scheduler=defaults["scheduler"], denoise=1.0,
    )  # fmt: skip
    picture = graph.add("VAEDecode", samples=graph.out(latent), vae=vae)
    saved = graph.add("SaveImage", images=graph.out(picture), filename_prefix=prefix)
    (path,) = host.server.pictures(host.run(graph), saved)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def cells(host: support.Host, run: str) -> dict[str, np.ndarray]:
    """The cells with a LoRA, of whichever grid of the run, by how their prompt was read."""
    out = {}
    for path in (host.base / "output" / "lora-atelier" / run / "grids" / "cells").glob("*.png"):
        facts = json.loads(Image.open(path).info["lora_atelier.cell"])
        if facts["epoch"] == 1 and facts["prompt_text"] == PROMPT:
            out[" ".join(facts["reading"])] = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return out


@pytest.mark.parametrize("syntax", ["plain", "ComfyUI"])
def test_cells_are_those_of_the_text_as_it_was_meant(host: support.Host, syntax: str) -> None:
    """The grid goes by the recipe of the LoRA, and where another syntax is chosen nothing that was drawn before is shown."""
    name = f"syntax-{syntax.lower()}"
    graph = host.graph()
    nodes = support.build_atelier(
        graph,
        "sd15",
        name,
        ConfigureLoRA={"prompt_syntax": syntax, "epochs": 2},
        EpochWeightGrid={"prompts": PROMPT, "strengths": "1"},
    )
    host.run(graph)
    file = str(Path("lora-atelier") / name / f"{name}-000001.safetensors")
    wanted = {"plain": stock(host, file, ESCAPED, f"{name}-p"), "ComfyUI": stock(host, file, PROMPT, f"{name}-c")}
    assert np.abs(wanted["plain"] - wanted["ComfyUI"]).max() > 8, "the syntax must be visible"
    drawn = cells(host, name)
    assert list(drawn) == ["plain" if syntax == "plain" else ""]
    assert np.abs(next(iter(drawn.values())) - wanted[syntax]).max() <= 4

    other = "ComfyUI" if syntax == "plain" else "plain"
    graph.prompt[nodes.grid]["inputs"]["prompt_syntax"] = other
    host.run(graph)
    drawn = cells(host, name)
    assert drawn.keys() == {"plain", ""}
    assert np.abs(drawn["plain"] - wanted["plain"]).max() <= 4 and np.abs(drawn[""] - wanted["ComfyUI"]).max() <= 4
