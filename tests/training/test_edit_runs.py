"""Whole runs of a model that edits: pairs in, a LoRA out that has learnt from the control pictures, and samples beside them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_atelier.training import host, job, prompting
from lora_atelier.training.config import LengthConfig, LossConfig, NetworkConfig, OptimizerConfig, SubsetConfig
from lora_atelier.training.config.sampling import Sampling
from lora_atelier.training.dataset import precomputed
from lora_atelier.training.dataset.cache import CACHE_LIMIT, TensorCache
from lora_atelier.training.dataset.images import to_picture
from lora_atelier.training.dataset.samples import Dataset, Subset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.families import family_named
from lora_atelier.training.grid import plan, render
from lora_atelier.training.grid.axes import parse_epochs
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from ..zoo.build import build
from ..zoo.recipes import Recipe, cond, flux
from .test_job import NO_PREVIEW, fresh_folders, go, recipe  # noqa: F401

FLUX = Recipe("Flux, tiny", "Flux", flux(context_in_dim=768, vec_in_dim=768), cond(768, pooled_output=(1, 768)))


@pytest.fixture(scope="module")
def editor(tiny):
    """A network of Flux's kind between the tiny models' CLIP-L and VAE of 16 channels."""
    return SimpleNamespace(model=build(FLUX).model, text=tiny("sd15").text, codec=tiny("sd3").codec)


def noise(seed, size=(64, 64)):
    drawn = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(drawn).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pairs"
    (folder / "control").mkdir(parents=True)
    for i in range(3):
        noise(i).save(folder / f"{i}.png")
        noise(100 + i, (96, 64) if i else (64, 64)).save(folder / "control" / f"{i}.png")
        (folder / f"{i}.txt").write_text("make it so", encoding="utf-8")
    return folder


def pairs(folder, **settings):
    return Dataset(scan(folder, SubsetConfig("input/pairs", resolution=64, bucket_step=32, **settings)))


def of(name, **changes):
    values = {"length": LengthConfig(epochs=4), "network": NetworkConfig(rank=4, alpha=4.0), **changes}
    return recipe(name, **{"precision": "fp32", "optimizer": OptimizerConfig(learning_rate=5e-3), **values})


def test_control_pictures_decide_what_is_learnt(editor, folder):
    learnt = go(editor, pairs(folder), of("pairs"))
    again = go(editor, pairs(folder), of("again"))
    assert all(torch.equal(learnt.tensors[k], again.tensors[k]) for k in learnt.tensors)
    noise(7, (96, 64)).save(folder / "control" / "1.png")
    other = go(editor, pairs(folder), of("other"))
    assert any(not torch.equal(learnt.tensors[k], other.tensors[k]) for k in learnt.tensors)
    for path in (folder / "control").iterdir():
        path.unlink()
    (folder / "control").rmdir()
    alone = go(editor, pairs(folder), of("alone"))
    assert any(not torch.equal(learnt.tensors[k], alone.tensors[k]) for k in learnt.tensors)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": LossConfig(preservation=0.5, preservation_prompt="a picture")},
        {"gradient_checkpointing": True},
        {"optimizer": OptimizerConfig(learning_rate=5e-3, accumulate=2)},
    ],
    ids=["preservation", "checkpointing", "accumulation"],
)
def test_what_a_run_can_do_it_can_do_with_pairs(editor, folder, changes):
    trained = go(editor, pairs(folder, batch_size=3, flip=True, validation_share=0.34), of("x", **changes))
    assert np.isfinite(trained.losses).all()
    saved = load_file(trained.epochs.files[-1].path)
    assert any(tensor.abs().sum() > 0 for name, tensor in saved.items() if "lora_up" in name or "lora_B" in name)


def samples(run):
    """What was drawn after the first epoch, by prompt."""
    files = sorted((host.runs_folder() / run / "samples").glob(f"{run}-000001*.png"))
    return [np.asarray(Image.open(path)) for path in files]


def test_samples_are_drawn_beside_control_pictures(editor, folder):
    preview = dataclasses.replace(NO_PREVIEW, prompt="make it so\nmake it so\nmake it so", steps=2)
    go(editor, pairs(folder), of("own", length=LengthConfig(epochs=1)), preview)
    shown = samples("own")
    assert len(shown) == 3
    assert not np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[1], shown[2])
    given = dataclasses.replace(preview, controls=tuple(prompting.apart(torch.rand(1, 64, 64, 3), "preview_control")))
    go(editor, pairs(folder), of("given", length=LengthConfig(epochs=1)), given)
    ours = samples("given")
    assert np.array_equal(ours[0], ours[1]) and not np.array_equal(ours[0], shown[0])


def test_samples_stand_beside_the_latents_that_came_with_conditionings(editor, tmp_path):
    """What *Set Reference Latent* has put on a conditioning is beside the sample of a prompt too, as the stock sampler has it."""
    stream = torch.Generator().manual_seed(5)
    latents = [{"samples": torch.randn(1, 16, 8, 8, generator=stream)} for _ in range(2)]
    with torch.inference_mode():
        said = editor.text.for_sampling("make it so")
    given = [torch.randn(1, 16, 8, 12, generator=stream) for _ in range(2)]
    told = [[[said[0][0], {**said[0][1], "reference_latents": [one]}]] for one in given]
    cache = TensorCache(host.cache_folder(), CACHE_LIMIT)
    made = Subset(SubsetConfig("nodes/latents"), precomputed.store(latents, told, cache), 1)
    preview = dataclasses.replace(NO_PREVIEW, prompt="make it so\nmake it so", steps=2, width=64, height=64)
    trained = go(editor, Dataset((made,)), of("made", length=LengthConfig(max_steps=1)), preview)
    start = [host.runs_folder() / "made" / "samples" / f"made-000000{number}.png" for number in ("", "-2")]
    for path, conditioning in zip(start, told, strict=True):
        with torch.inference_mode():
            empty = editor.text.for_sampling("")
            nothing = [[empty[0][0], {**empty[0][1], "reference_latents": conditioning[0][1]["reference_latents"]}]]
            drawn = editor.model.sample(conditioning, nothing, preview.settings, latent_size=(8, 8), seed=0)
            expected = to_picture(editor.codec.decode(drawn)[0])
        assert np.abs(np.asarray(expected).astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 1
    with safe_open(trained.epochs.files[-1].path, framework="pt") as file:
        assert file.metadata()["lora_atelier.pairs"] == "2"
    assert "preview_prompt: it is empty" not in said_of("made")
    go(editor, Dataset((made,)), of("wordless", length=LengthConfig(max_steps=1)), dataclasses.replace(preview, prompt=" "))
    assert "preview_prompt: it is empty" in said_of("wordless")


def test_a_sample_is_what_the_hosts_own_nodes_draw(editor, folder):
    """Reference latents as *Set Reference Latent* puts them, on both conditionings."""
    nodes = pytest.importorskip("comfy_extras.nodes_edit_model")
    shows = prompting.shows_of(family_named(editor.model.family), editor.text, True)
    assert shows.shown and not shows.seen
    (control,) = prompting.opened(prompting.controls_of(pairs(folder), 1))
    told = prompting.Prompter(editor.text, prompting.ControlPictures(editor.codec, shows, [control]))("make it so", 0)
    with torch.inference_mode():
        latent = {"samples": editor.codec.vae.encode(control[0])}
        theirs = nodes.ReferenceLatent.execute(editor.text.for_sampling("make it so"), latent).result[0]
    assert len(told) == len(theirs) == 1 and told[0][1].keys() == theirs[0][1].keys()
    assert torch.equal(told[0][0], theirs[0][0])
    assert torch.equal(told[0][1]["reference_latents"][0], theirs[0][1]["reference_latents"][0].float().cpu())


def said_of(run):
    return (host.runs_folder() / run / "run.json").read_text(encoding="utf-8")


def test_what_pairs_and_model_do_not_have_in_common_is_said(tiny, editor, folder):
    short = {"length": LengthConfig(epochs=1)}
    go(tiny("sd15"), pairs(folder), of("sd15", **short))
    assert "3 pictures have control pictures, which a SD15 model does not read" in said_of("sd15")
    go(editor, pairs(folder), of("edits", **short), named=job.Named("flux1-dev-kontext_fp8_scaled.safetensors"))
    assert "control pictures" not in said_of("edits").replace("with control pictures", "")
    go(editor, pairs(folder), of("unlikely", **short), named=job.Named("flux1-dev.safetensors"))
    assert "nothing in the model's name (flux1-dev.safetensors) says that it edits" in said_of("unlikely")
    for path in (folder / "control").iterdir():
        path.unlink()
    go(editor, pairs(folder), of("plain", **short), named=job.Named("FluxKontextDev.safetensors"))
    assert "this model edits pictures, by its name (kontext), and the dataset has no control pictures" in said_of("plain")


def grid_of(editor, epochs, folder, prompts, places, given, together=0):
    axes = plan.Axes(prompts, plan.columns_of([epochs], parse_epochs("all")), (0.5, 1.0), (3,), None, places)
    shows = prompting.shows_of(family_named(editor.model.family), editor.text, True)
    controls = prompting.ControlPictures(editor.codec, shows, given)
    grid = render.Grid(
        editor.model, editor.text, editor.codec, axes, Sampling("", "euler", "simple", 2, 1.0, 64, 64, 0), folder, {},
        together=together, controls=controls,
    )  # fmt: skip
    with torch.inference_mode():
        grid.check()
        grid.render(lambda *_: None)
    return grid


def test_a_grid_has_a_page_for_each_control_picture(editor, folder, tmp_path):
    trained = go(editor, pairs(folder), of("grid", length=LengthConfig(epochs=2)))
    assert [[path.name for path in group] for group in trained.epochs.controls] == [["0.png"]]
    given = prompting.apart(torch.rand(2, 64, 80, 3, generator=torch.Generator().manual_seed(1)), "control")
    prompts, places = plan.beside(["make it so"], 2)
    assert (prompts, places) == (("make it so", "make it so"), (0, 1))
    many = grid_of(editor, trained.epochs, tmp_path / "many", prompts, places, given)
    pictures = [{place: np.asarray(Image.open(path)) for place, path in page.items()} for page in many.book.cells]
    assert all(len(page) == 5 for page in pictures)
    assert all(not np.array_equal(pictures[0][place], pictures[1][place]) for place in pictures[0])
    facts = [many.book.facts(page) for page in (0, 1)]
    assert [one["control"] for one in facts] == [1, 2]
    # A cell is what the samples of training and the host's own sampler draw.
    told = prompting.Prompter(editor.text, many.brush.controls)
    with torch.inference_mode():
        latent = editor.model.sample(told("make it so", 1), told("", 1), many.sampling.settings, latent_size=(8, 8), seed=3)
        alone = to_picture(editor.codec.decode(latent)[0])
    assert np.abs(np.asarray(alone).astype(int) - pictures[1][0, 0]).max() <= 1
    single = grid_of(editor, trained.epochs, tmp_path / "single", prompts, places, given, together=1)
    for page, drawn in zip(single.book.cells, pictures, strict=True):
        for place, path in page.items():
            assert np.abs(np.asarray(Image.open(path)).astype(int) - drawn[place]).max() <= 2
    # Other control pictures are other cells, and the same ones are not drawn again.
    keys = {path.name for page in many.book.cells for path in page.values()}
    again = grid_of(editor, trained.epochs, tmp_path / "many", prompts, places, given[::-1])
    assert keys == {path.name for page in again.book.cells for path in page.values()}


def test_prompts_and_control_pictures_go_in_pairs():
    assert plan.beside(["a", "b", "a"], 0) == (("a", "b"), ())
    assert plan.beside(["a", "b"], 1) == (("a", "b"), (0, 0))
    assert plan.beside(["a", "b"], 3) == (("a", "b", "b"), (0, 1, 2))
    assert plan.beside(["a", "a"], 1) == (("a",), (0,))


def test_a_run_does_not_go_on_with_other_control_pictures_unasked(tiny, editor, folder):
    go(editor, pairs(folder), of("kept"))
    noise(7, (96, 64)).save(folder / "control" / "1.png")
    with pytest.raises(AtelierError, match=r"another mask, focus, control picture or conditioning: 1\.png"):
        go(editor, pairs(folder), of("kept"))
    # A model that is not shown them goes on.
    short = of("plain", length=LengthConfig(epochs=1))
    first = go(tiny("sd15"), pairs(folder), short)
    noise(8, (96, 64)).save(folder / "control" / "1.png")
    assert [file.path for file in go(tiny("sd15"), pairs(folder), short).epochs.files] == [f.path for f in first.epochs.files]
