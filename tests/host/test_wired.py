"""Samples and grid through SAMPLER, SIGMAS and GUIDER wires on a real server, beside the stock nodes' own picture."""

from __future__ import annotations

import json

import numpy as np
from lora_atelier.tests.host import support
from PIL import Image

PROMPT = "a red square"


def add_wires(graph: support.Graph, model: list, clip: list, text: str) -> dict[str, list]:
    positive, negative = (graph.add("CLIPTextEncode", clip=clip, text=one) for one in (text, ""))
    guider = graph.add("CFGGuider", model=model, positive=graph.out(positive), negative=graph.out(negative), cfg=2.5)
    sampler = graph.add("SamplerDPMPP_SDE", eta=0.7, s_noise=0.9, r=0.4, noise_device="cpu")
    sigmas = graph.add("BasicScheduler", model=model, scheduler="beta", steps=3, denoise=1.0)
    return {"guider": graph.out(guider), "sampler": graph.out(sampler), "sigmas": graph.out(sigmas)}


def test_a_grid_through_wires_is_that_of_the_stock_nodes(host: support.Host) -> None:
    graph = host.graph()
    nodes = support.build_atelier(
        graph, "sd3", "wired", TrainLoRA={"preview_steps": 20}, EpochWeightGrid={"prompts": PROMPT, "strengths": "1"}
    )  # fmt: skip
    wires = add_wires(graph, nodes.model, nodes.clip, "its text does not count")
    for node in (nodes.train, nodes.grid):
        graph.prompt[node]["inputs"] |= wires
    entry = host.run(graph)
    (page,) = host.server.pictures(entry, nodes.grid)
    facts = json.loads(Image.open(page).info["lora_atelier.grid"])
    assert facts["sampler"] == "dpmpp_sde (eta 0.7, s_noise 0.9, r 0.4) through CFGGuider" and facts["steps"] == 3
    samples = sorted((host.base / "output" / "lora-atelier" / "wired" / "samples").glob("*.png"))
    assert len(samples) == 3
    account = json.loads((host.base / "output" / "lora-atelier" / "wired" / "run.json").read_text(encoding="utf-8"))["account"]
    assert any(one.startswith("sampler, sigmas, guider: they came through their wires") for one in account["notes"])

    stock = host.graph()
    model, clip, vae = support.load_checkpoint(stock, "sd3")
    own = add_wires(stock, model, clip, PROMPT)
    noise = stock.add("RandomNoise", noise_seed=3)
    empty = stock.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    drawn = stock.add("SamplerCustomAdvanced", noise=stock.out(noise), latent_image=stock.out(empty), **own)
    picture = stock.add("VAEDecode", samples=stock.out(drawn), vae=vae)
    saved = stock.add("SaveImage", images=stock.out(picture), filename_prefix="wired")
    (expected,) = host.server.pictures(host.run(stock), saved)
    control = page.parent / facts["cells"]["0,0"]["file"]
    assert np.array_equal(np.asarray(Image.open(control).convert("RGB")), np.asarray(Image.open(expected).convert("RGB")))
    assert host.server.pictures(host.run(graph), nodes.grid) == [page]


def test_levels_that_draw_nothing_are_a_sentence_on_the_node(host: support.Host) -> None:
    graph = host.graph()
    nodes = support.build_atelier(graph, "sd3", "wireless")
    flat = graph.add("BasicScheduler", model=nodes.model, scheduler="simple", steps=3, denoise=0.0)
    graph.prompt[nodes.train]["inputs"]["sigmas"] = graph.out(flat)
    failure = host.fail(graph)
    assert failure.node == "TrainLoRA" and "sigmas: 0 levels came through the wire" in failure.message
