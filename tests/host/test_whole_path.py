"""The product in one graph, over HTTP: pictures to captions to a LoRA to a grid, and the file in stock nodes afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lora_atelier.tests.host import support
from PIL import Image
from safetensors import safe_open


class Trained:
    """What one run of the whole path left behind."""

    def __init__(self, host: support.Host, family: str):
        self.host, self.family, self.name = host, family, f"whole-{family}"
        self.graph = host.graph()
        self.nodes = support.build_atelier(self.graph, family, self.name, TrainLoRA={"keep_state": "keep"})
        loss = self.graph.add("LossGraphNode", loss=self.graph.out(self.nodes.train, 2), filename_prefix=f"loss-{family}")
        model, clip = self.graph.out(self.nodes.train, 3), self.graph.out(self.nodes.train, 4)
        self.direct = support.add_sampling(self.graph, model, clip, self.nodes.vae, family, prefix=f"direct-{family}")
        with host.watched_log() as self.log:
            self.entry = host.run(self.graph)
        self.loss_pictures = host.server.pictures(self.entry, loss)

    @property
    def files(self) -> list[Path]:
        return sorted((self.host.loras / "lora-atelier" / self.name).glob("*.safetensors"))

    def pictures(self, node: str) -> list[Path]:
        return self.host.server.pictures(self.entry, node)


_trained: dict[tuple[str, str], Trained] = {}


def trained_once(host: support.Host, family: str) -> Trained:
    """One training serves all tests that only look at what it left."""
    if (host.name, family) not in _trained:
        _trained[host.name, family] = Trained(host, family)
    return _trained[host.name, family]


@pytest.fixture(params=["sd15", "sd3"])
def trained(request: pytest.FixtureRequest, host: support.Host) -> Trained:
    return trained_once(host, request.param)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def sample_with_lora(host: support.Host, family: str, file: str, strength: float, prefix: str) -> Path:
    """The stock way: checkpoint, LoraLoader, KSampler; an unmatched key in the file fails the run (see ``Host.run``)."""
    graph = host.graph()
    model, clip, vae = support.load_checkpoint(graph, family)
    lora = graph.add("LoraLoader", model=model, clip=clip, lora_name=file, strength_model=strength, strength_clip=strength)
    saved = support.add_sampling(graph, graph.out(lora, 0), graph.out(lora, 1), vae, family, prefix=prefix)
    return host.server.pictures(host.run(graph), saved)[0]


def test_captions_are_written_from_file_names(trained: Trained) -> None:
    folder = trained.host.base / "input" / "shapes"
    assert {p.stem: p.read_text(encoding="utf-8").strip() for p in folder.glob("*.txt")} == {n: n for n in support.PICTURES}


def test_every_epoch_has_a_file_with_metadata(trained: Trained) -> None:
    assert [f.name for f in trained.files] == [f"{trained.name}-000001.safetensors", f"{trained.name}.safetensors"]
    for epoch, path in enumerate(trained.files, start=1):
        with safe_open(path, "pt") as file:
            metadata, keys = file.metadata(), list(file.keys())
            assert all(file.get_tensor(key).isfinite().all() for key in keys)
        assert metadata["ss_epoch"] == str(epoch) and metadata["ss_num_epochs"] == "2"
        assert metadata["ss_network_dim"] == "2" and float(metadata["ss_network_alpha"]) == 2
        assert json.loads(metadata["prompt"])[trained.nodes.train]["class_type"] == "TrainLoRA"
        assert all(key.startswith("lora_unet_") for key in keys)
        assert {key.rsplit(".", 2 if key.endswith("weight") else 1)[1] for key in keys} == {"lora_down", "lora_up", "alpha"}
    assert not list(trained.files[0].parent.glob("*.partial"))


def test_grid_is_shown_and_saved_with_a_page_a_prompt(trained: Trained) -> None:
    pages = trained.pictures(trained.nodes.grid)
    assert len(pages) == 2
    for page in pages:
        assert page.is_file() and pixels(page).std() > 5
        assert {"prompt", "lora_atelier.grid"} <= Image.open(page).info.keys()
    axes = json.loads(Image.open(pages[0]).info["lora_atelier.grid"])
    assert axes["strengths"] == [0.5, 1.0] and [e["epoch"] for e in axes["epochs"]] == [1, 2]


def test_cells_are_saved_with_their_own_metadata(trained: Trained) -> None:
    cells = {}
    for path in (trained.pictures(trained.nodes.grid)[0].parent / "cells").glob("*.png"):
        facts = json.loads(Image.open(path).info["lora_atelier.cell"])
        cells[facts["prompt_text"], facts["epoch"], facts["strength"]] = path
    prompts = ("a red square", "a blue circle")
    expected = {(p, e, s) for p in prompts for e in (1, 2) for s in (0.5, 1.0)} | {(p, None, 0) for p in prompts}
    assert cells.keys() == expected
    assert all(Image.open(path).size == (64, 64) for path in cells.values())
    of_one_prompt = [pixels(path).tobytes() for (prompt, _, _), path in cells.items() if prompt == prompts[0]]
    assert len(set(of_one_prompt)) == len(of_one_prompt), "epoch and strength must be visible in the picture"


def test_file_in_the_stock_loader_matches_the_model_in_the_graph(trained: Trained) -> None:
    """TrainLoRA's own MODEL and CLIP outputs, and the saved file in LoraLoader, give the same picture; strength 0 another."""
    file = str(trained.files[-1].relative_to(trained.host.loras))
    host, family = trained.host, trained.family
    one = pixels(sample_with_lora(host, family, file, 1.0, f"loader-{family}"))
    none = pixels(sample_with_lora(host, family, file, 0.0, f"zero-{family}"))
    (direct,) = trained.pictures(trained.direct)
    assert np.abs(one - pixels(direct)).max() <= 1
    assert np.abs(one - none).max() > 8


def test_grid_cell_matches_the_stock_sampler(trained: Trained) -> None:
    """A cell shows what a person gets who loads that file with that strength and those sampler settings."""
    host, graph = trained.host, trained.host.graph()
    model, clip, vae = support.load_checkpoint(graph, trained.family)
    file = str(trained.files[0].relative_to(host.loras))
    lora = graph.add("LoraLoader", model=model, clip=clip, lora_name=file, strength_model=0.5, strength_clip=0.5)
    defaults = graph.defaults("EpochWeightGrid")
    text = graph.add("CLIPTextEncode", clip=graph.out(lora, 1), text="a blue circle")
    negative = graph.add("CLIPTextEncode", clip=graph.out(lora, 1), text="")
    kind = "EmptyLatentImage" if trained.family == "sd15" else "EmptySD3LatentImage"
    empty = graph.add(kind, width=64, height=64, batch_size=1)
    latent = graph.add(
        "KSampler", model=graph.out(lora, 0), positive=graph.out(text), negative=graph.out(negative),
        latent_image=graph.out(empty),
        seed=3, steps=2, cfg=1.0, sampler_name=defaults["sampler_name"], scheduler=defaults["scheduler"], denoise=1.0,
    )  # fmt: skip
    picture = graph.add("VAEDecode", samples=graph.out(latent), vae=vae)
    saved = graph.add("SaveImage", images=graph.out(picture), filename_prefix=f"cell-{trained.family}")
    (stock,) = host.server.pictures(host.run(graph), saved)

    wanted = {"prompt_text": "a blue circle", "epoch": 1, "strength": 0.5}
    folder = trained.pictures(trained.nodes.grid)[0].parent / "cells"
    (cell,) = [p for p in folder.glob("*.png") if wanted.items() <= json.loads(Image.open(p).info["lora_atelier.cell"]).items()]
    assert np.abs(pixels(cell) - pixels(stock)).max() <= 2


def test_a_second_queue_trains_and_draws_nothing_anew(host: support.Host) -> None:
    """Also when the server has forgotten everything, as after a restart."""
    trained = trained_once(host, "sd3")
    folder = trained.pictures(trained.nodes.grid)[0].parent / "cells"

    def changed() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in [*trained.files, *folder.glob("*.png")]}

    before = changed()
    host.server.post("/free", {"unload_models": True, "free_memory": True})
    host.run(trained.graph)
    assert changed() == before


def test_what_was_deleted_comes_back_although_nothing_else_has_changed(host: support.Host) -> None:
    """ComfyUI's own cache would say success with nothing there. The file is written again from the state, which is kept here."""
    trained = trained_once(host, "sd3")
    host.run(trained.graph)  # whatever other tests have made the server forget
    (page,) = trained.pictures(trained.nodes.grid)[:1]
    last, pages = trained.files[-1], page.parent
    content, before = last.read_bytes(), {path.name for path in pages.rglob("*.png")}
    last.unlink()
    page.unlink()
    host.run(trained.graph)
    with safe_open(last, framework="np") as file:
        assert set(file.keys()) and len(last.read_bytes()) == pytest.approx(len(content), rel=0.01)
    assert page.is_file() and {path.name for path in pages.rglob("*.png")} == before
    stamps = last.stat().st_mtime_ns, page.stat().st_mtime_ns
    host.run(trained.graph)
    assert stamps == (last.stat().st_mtime_ns, page.stat().st_mtime_ns), "and stays as it is"
