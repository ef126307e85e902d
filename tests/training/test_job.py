"""Whole training jobs on tiny models: files, resume, cancel, bad numbers, a full disk."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_atelier.training import files, host, job, recorder, step
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    SubsetConfig,
    TextConfig,
    TrainingConfig,
    from_dict,
    to_dict,
)
from lora_atelier.training.config.sampling import SamplerSettings
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.estimate import preflight
from lora_atelier.training.grid import plan, render
from lora_atelier.training.grid.axes import parse_epochs
from lora_atelier.training.runs import run
from lora_atelier.training.runs.record import SavedLoRA
from lora_atelier.training.runs.run import Run
from lora_atelier.training.tensors.precision import compute_dtype
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

NO_PREVIEW = job.Preview("", "", 0, 1.0, "euler", "normal", 0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, comfyui):
    """Five pictures in two sizes with captions: 3 steps an epoch at batch 2."""
    folder = tmp_path_factory.mktemp("pictures")
    stream = torch.Generator().manual_seed(0)
    for i in range(5):
        size = (96, 64) if i < 3 else (64, 64)
        noise = (torch.rand(8, 8, 3, generator=stream) * 255).to(torch.uint8).numpy()
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i % 2}", encoding="utf-8")
    config = SubsetConfig("input/pictures", resolution=64, batch_size=2, bucket_step=32)
    return Dataset(scan.scan(folder, config))


@pytest.fixture(autouse=True)
def fresh_folders(tmp_path, monkeypatch):
    """Every test has its own runs and LoRAs; the cache is shared, as it is in real life."""
    monkeypatch.setattr(host, "runs_folder", lambda: tmp_path / "runs")
    monkeypatch.setattr(host, "loras_folder", lambda: tmp_path / "loras")
    return tmp_path


def recipe(name: str = "tiny", **changes) -> TrainingConfig:
    values = {
        "network": NetworkConfig(rank=2, alpha=1.0),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "length": LengthConfig(epochs=3),
        "save_precision": "fp32",
        "seed": 7,
    }
    return TrainingConfig(name, **{**values, **changes})


def go(t, dataset, config: TrainingConfig, preview: job.Preview = NO_PREVIEW, when: str = "continue", **more) -> job.Trained:
    with torch.inference_mode():  # as the graph runs its nodes
        return job.run_training(
            t.model, t.text, t.codec, dataset, config, preview=preview, when=when,
            graph={"workflow": '{"nodes": []}', "prompt": "{}"}, **more,
        )  # fmt: skip


class Stop:
    """Cancels, or fails, at a step, the way the host does it: from within a check that the loop makes."""

    def __init__(self, monkeypatch, at: int, error: BaseException):
        import comfy.model_management

        self.seen = 0
        real = host.check_interrupt
        assert comfy.model_management  # the real interrupt class comes from there

        def check() -> None:
            real()
            self.seen += 1
            if self.seen == at:
                raise error

        monkeypatch.setattr(host, "check_interrupt", check)


@pytest.fixture
def interrupt(comfyui):
    from comfy.model_management import InterruptProcessingException

    return InterruptProcessingException()


def only_training_checks(monkeypatch):
    """The progress bar and timed passes check for a cancel as well; here only the loop's own check shall count steps."""
    monkeypatch.setattr(preflight, "pass_seconds", lambda _session, _batch: None)
    monkeypatch.setattr(host, "progress", lambda total: lambda step, preview=None: None)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_every_epoch_leaves_a_file_and_the_files_say_what_they_are(tiny, dataset, name):
    t = tiny(name)
    trained = go(t, dataset, recipe(), dataclasses.replace(NO_PREVIEW, steps=2))
    assert [f.path.name for f in trained.epochs.files] == [
        "tiny-000001.safetensors",
        "tiny-000002.safetensors",
        "tiny.safetensors",
    ]
    assert [(f.epoch, f.step) for f in trained.epochs.files] == [(1, 3), (2, 6), (3, 9)]
    assert len(trained.losses) == 9
    with safe_open(trained.epochs.files[0].path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "2" and metadata["ss_network_alpha"] == "1.0"
    assert metadata["ss_epoch"] == "1" and metadata["ss_num_epochs"] == "3" and metadata["ss_steps"] == "3"
    assert json.loads(metadata["ss_tag_frequency"]) == {"1_pictures": {"picture 0": 3, "picture 1": 2}}
    assert metadata["workflow"] == '{"nodes": []}'
    assert from_dict(TrainingConfig, json.loads(metadata["lora_atelier.config"])) == recipe()
    samples = sorted(p.name for p in (host.runs_folder() / "tiny" / "samples").iterdir())
    assert samples == ["tiny-000000.png", "tiny-000001.png", "tiny-000002.png", "tiny-000003.png"]
    first, last = load_file(trained.epochs.files[0].path), load_file(trained.epochs.files[2].path)
    assert any(not torch.equal(first[k], last[k]) for k in first)


def test_the_hash_in_the_metadata_is_that_of_the_bytes_behind_the_header(tiny, dataset):
    import hashlib

    path = go(tiny("sd3"), dataset, recipe()).epochs.files[-1].path
    data = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        stated = file.metadata()["sshs_model_hash"]
    assert stated == hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def test_training_learns(tiny, dataset):
    losses = go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=12))).losses
    assert sum(losses[-9:]) < 0.9 * sum(losses[:9])


def test_the_same_seed_gives_the_same_lora_and_another_seed_another(tiny, dataset):
    t = tiny("sd3")
    first = go(t, dataset, recipe("one")).tensors
    again = go(t, dataset, recipe("two")).tensors
    other = go(t, dataset, recipe("three", seed=8)).tensors
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("stops", [[2], [4], [4, 3], [1, 1, 4]])
def test_a_cancelled_run_goes_on_to_the_very_same_lora(tiny, dataset, monkeypatch, interrupt, stops):
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole"))
    only_training_checks(monkeypatch)
    for at in stops:
        with monkeypatch.context() as patch:
            # ``at`` checks pass, so ``at`` steps are trained before the cancel
            Stop(patch, at + 1, interrupt)
            with pytest.raises(type(interrupt)):
                go(t, dataset, recipe("pieces"))
    done = sum(stops)
    moment = host.loras_folder() / "pieces" / f"pieces-step{done:08d}.safetensors"
    assert moment.is_file() == (done % 3 != 0)
    pieces = go(t, dataset, recipe("pieces"))
    assert all(torch.equal(whole.tensors[k], pieces.tensors[k]) for k in whole.tensors)
    assert pieces.losses == whole.losses
    assert [f.step for f in pieces.epochs.files] == [3, 6, 9]


@pytest.fixture(scope="module")
def fresh_crops(dataset):
    """The same pictures, cut elsewhere at every sighting and encoded in their step."""
    (subset,) = dataset.subsets
    config = dataclasses.replace(subset.config, crop="random", flip=True, variants=0, batch_size=1)
    return Dataset((dataclasses.replace(subset, config=config),))


def test_pictures_encoded_in_their_step_train_as_cached_ones_do(tiny, fresh_crops):
    """For the four sightings at which both see the same places; the model is the same afterwards."""
    t = tiny("sd3")
    (subset,) = fresh_crops.subsets
    cached = Dataset((dataclasses.replace(subset, config=dataclasses.replace(subset.config, variants=4)),))
    before = t.model.identity()
    fresh = go(t, fresh_crops, recipe("fresh", length=LengthConfig(epochs=5))).losses
    assert t.model.identity() == before
    expected = go(t, cached, recipe("cached", length=LengthConfig(epochs=5))).losses
    assert fresh[:20] == pytest.approx(expected[:20], rel=1e-3) and fresh[20:] != pytest.approx(expected[20:], rel=1e-3)


def test_a_cancelled_run_with_fresh_crops_goes_on_to_the_very_same_lora(tiny, fresh_crops, monkeypatch, interrupt):
    t = tiny("sd3")
    whole = go(t, fresh_crops, recipe("whole"))
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 8, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, fresh_crops, recipe("pieces"))
    pieces = go(t, fresh_crops, recipe("pieces"))
    assert pieces.losses == whole.losses
    assert all(torch.equal(whole.tensors[k], pieces.tensors[k]) for k in whole.tensors)


def test_the_state_is_saved_within_an_epoch_too(tiny, dataset, monkeypatch):
    """What a power cut leaves: the snapshot of an earlier step, from which the same LoRA is reached."""
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole"))
    monkeypatch.setattr(job.training, "Callbacks", functools.partial(recorder.Callbacks, interval=0, snapshot_interval=0))
    state = host.runs_folder() / "cut" / "state" / "state.safetensors"
    kept, real = {}, Run.save_state

    def remember(run, at):
        real(run, at)
        kept[at.step] = state.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", remember)
        go(t, dataset, recipe("cut"))
    assert sorted(kept) == list(range(1, 10))
    for epoch in (host.loras_folder() / "cut").glob("*.safetensors"):
        if epoch.name != "cut-000001.safetensors":
            epoch.unlink()
    state.write_bytes(kept[5])
    cut = go(t, dataset, recipe("cut"))
    assert cut.losses == whole.losses
    assert all(torch.equal(whole.tensors[k], cut.tensors[k]) for k in whole.tensors)


def test_what_is_left_to_chance_comes_again_after_a_cancel(tiny, dataset, monkeypatch, interrupt):
    """Flips, random crops, shuffled and dropped captions, masks, a prior and held-out pictures, cut in the middle of an epoch."""
    folder = dataset.subsets[0].samples[0].path.parent
    shared = {"resolution": 64, "bucket_step": 32, "flip": True, "crop": "random", "masks": "alpha", "mask_floor": 0.2}
    chance = {"shuffle_captions": True, "tag_dropout": 0.3, "caption_dropout": 0.2, "caption_suffix": ", red, round"}
    mixed = Dataset(
        scan.scan(folder, SubsetConfig("input/a", batch_size=2, repeats=2, validation_share=0.2, **shared, **chance))
        + scan.scan(folder, SubsetConfig("input/b", role="regularisation", class_caption="thing", loss_weight=0.5, **shared))
    )
    t = tiny("sd3")
    whole = go(t, mixed, recipe("whole", length=LengthConfig(epochs=2)))
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 6, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, mixed, recipe("pieces", length=LengthConfig(epochs=2)))
    pieces = go(t, mixed, recipe("pieces", length=LengthConfig(epochs=2)))
    assert pieces.losses == whole.losses and all(torch.equal(whole.tensors[k], pieces.tensors[k]) for k in whole.tensors)
    with safe_open(pieces.epochs.files[-1].path, framework="pt") as file:
        metadata = file.metadata()
    numbers = [metadata[f"ss_num_{name}_images"] for name in ("train", "reg", "validation")]
    assert numbers == ["8", "4", "1"], "4 of 5 pictures x 2, the prior before it is cycled and without the one that is held out"


def test_a_finished_run_is_handed_on_without_training_again(tiny, dataset, monkeypatch):
    t = tiny("sd3")
    first = go(t, dataset, recipe())
    monkeypatch.setattr(job.training, "train", lambda *_: pytest.fail("trained again"))
    again = go(t, dataset, recipe())
    assert again.epochs == first.epochs and again.losses == first.losses


def test_what_another_node_has_moved_outside_of_inference_mode_trains_and_samples(dataset):
    """As ``nn.Module.to`` moves weights: nothing can be computed with such a model, not even by the host, until it is mended."""
    from .conftest import load_model

    t = load_model("sd15")
    roots = (t.model.base, t.text.clip.cond_stage_model, t.codec.vae.first_stage_model)
    hybrids = [tensor for root in roots for tensor in (*root.parameters(), *root.buffers()) if tensor.is_inference()]
    for tensor in hybrids:
        tensor.data = tensor.data.clone()
    assert hybrids and not any(tensor.is_inference() for tensor in hybrids)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="version counter"):
        t.text.encode("a picture")
    moved = SimpleNamespace(
        model=host.Model(t.model.patcher), text=host.TextEncoder(t.text.clip), codec=host.PictureCodec(t.codec.vae)
    )
    assert {p.data_ptr() for p in hybrids} <= {t.data_ptr() for r in roots for t in (*r.parameters(), *r.buffers())}
    trained = go(moved, dataset, recipe(text=TextConfig("all")), dataclasses.replace(NO_PREVIEW, steps=1))
    assert len(trained.losses) == 9 and all(np.isfinite(trained.losses))


def test_other_settings_under_the_same_name_never_overwrite(tiny, dataset):
    t = tiny("sd3")
    first = go(t, dataset, recipe()).epochs.files[-1].path
    content = first.read_bytes()
    other = go(t, dataset, recipe(seed=9))
    assert other.epochs.name == "tiny-2" and first.read_bytes() == content
    third = go(t, dataset, recipe(), when="start over")
    assert third.epochs.name == "tiny-3"


def test_lost_numbers_stop_the_run_and_keep_the_last_good_file(tiny, dataset, monkeypatch):
    t = tiny("sd3")
    real = step.losses.batch_loss
    count = iter(range(100))
    monkeypatch.setattr(step.losses, "batch_loss", lambda *given: real(*given) * (float("nan") if next(count) == 4 else 1.0))
    with pytest.raises(AtelierError, match=r"NaN.*step 5.*learning rate"):
        go(t, dataset, recipe())
    kept = sorted(p.name for p in (host.loras_folder() / "tiny").iterdir())
    assert kept == ["tiny-000001.safetensors"]
    assert all(v.isfinite().all() for v in load_file(host.loras_folder() / "tiny" / kept[0]).values())
    monkeypatch.undo()


def test_a_training_of_a_sweep_that_fails_leaves_the_others_their_way(tiny, dataset, monkeypatch):
    def swept(rate: str) -> plan.Epochs:
        return go(t, dataset, dataclasses.replace(recipe(), varied=f"learning_rate={rate}")).epochs

    t, before = tiny("sd3"), run.SAVED_LORAS.losses()
    real, count = step.losses.batch_loss, iter(range(100))
    monkeypatch.setattr(step.losses, "batch_loss", lambda *given: real(*given) * (float("nan") if next(count) == 4 else 1.0))
    failed = swept("1")
    assert "NaN" in failed.failed and [file.epoch for file in failed.files] == [1]
    assert run.SAVED_LORAS.losses() > before, "the node is asked anew, and does not remember its answer"
    monkeypatch.undo()
    sound = swept("0.001")
    assert (failed.name, sound.name, sound.failed) == ("tiny learning_rate 1", "tiny learning_rate 0.001", "")
    (said,) = plan.remarks([failed, sound], parse_epochs("last"), (1.0,))
    assert said.startswith("tiny learning_rate 1: it was not trained to its end.") and "NaN" in said
    again = swept("1")
    assert again.failed == "" and len(again.files) == len(sound.files)


def test_a_full_disk_is_named_and_what_was_there_survives(tiny, dataset, monkeypatch):
    t = tiny("sd3")
    real, writes = os.replace, []

    def full(written, path):
        writes.append(Path(path).name)
        if "tiny-000002.safetensors" in writes:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(written, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(AtelierError, match="disk is full"):
            go(t, dataset, recipe())
    left = sorted(p.name for p in (host.loras_folder() / "tiny").iterdir())
    assert left == ["tiny-000001.safetensors"]
    assert load_file(host.loras_folder() / "tiny" / left[0])
    assert [f.step for f in go(t, dataset, recipe()).epochs.files] == [3, 6, 9]


def test_a_half_written_file_never_takes_the_place_of_a_whole_one(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_dataset_without_any_caption_is_refused(tiny, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    bare = Dataset(scan.scan(tmp_path, SubsetConfig("input/bare", resolution=64)))
    with pytest.raises(AtelierError, match="Auto Caption"):
        go(tiny("sd3"), bare, recipe())


def test_a_vanished_picture_is_named(tiny, dataset, tmp_path):
    t = tiny("sd3")
    subset = dataset.subsets[0]
    gone = dataclasses.replace(subset.samples[0], path=tmp_path / "gone.png", key="0" * 64)
    broken = type(dataset)((dataclasses.replace(subset, samples=(gone, *subset.samples[1:])),))
    with pytest.raises(AtelierError, match=r"gone\.png"):
        go(t, broken, recipe())


def test_a_damaged_state_is_named(tiny, dataset, monkeypatch, interrupt):
    t = tiny("sd3")
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 3, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, dataset, recipe())
    state = host.runs_folder() / "tiny" / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(AtelierError, match="start over"):
        go(t, dataset, recipe())


@pytest.fixture
def half_units(monkeypatch):
    """The CPU is taken for one that computes in half precisions."""
    monkeypatch.setattr("lora_atelier.training.tensors.precision.has_native_support", lambda *_: True)


@pytest.mark.cpu_only("a GPU computes in every half precision")
def test_a_half_precision_that_the_cpu_takes_apart_is_not_computed_in(tiny, dataset, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_fp16": True}, raising=False)
    t, said = tiny("sd3"), list[str]()
    half = go(t, dataset, recipe("bf16", precision="bf16"), show=said.append)
    assert half.losses == go(t, dataset, recipe("fp32", precision="fp32")).losses
    (line,) = [line for line in said if line.startswith("precision")]
    assert "bf16" in line and "fp32" in line
    assert compute_dtype("fp16", t.model.device) == torch.float16 and compute_dtype("auto", t.model.device) is None
    assert compute_dtype("bf16", torch.device("cuda")) == torch.bfloat16


def test_lower_precision_is_used_and_undone(tiny, dataset, half_units):
    t = tiny("sd3")
    from .host.test_host import picture

    before = picture(t)
    half = go(t, dataset, recipe("bf16", precision="bf16"))
    full = go(t, dataset, recipe("fp32", precision="fp32"))
    assert torch.equal(picture(t), before)
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, rel=0.05)


def test_a_second_run_computes_as_the_first(tiny, dataset, half_units):
    """The host leaves on the network what the first run's copy of the model had asked for, until it needs the network again."""
    t = tiny("sd3")
    first, second = (go(t, dataset, recipe(name, precision="bf16")).losses for name in ("first", "second"))
    assert t.model.compute_dtype == torch.float32
    as_loaded = go(t, dataset, recipe("as loaded", precision="auto")).losses
    assert first == second != as_loaded
    assert as_loaded == go(t, dataset, recipe("as loaded again", precision="auto")).losses


def test_settings_survive_the_way_through_json():
    config = recipe(precision="bf16", comment="ohwx")
    assert from_dict(TrainingConfig, json.loads(json.dumps(to_dict(config)))) == config


# The grid ----------------------------------------------------------------------------------------------------------------


def grid_of(t, epochs: run.Epochs, folder: Path, strengths=(0.5, 1.0), seed: int = 3) -> render.Grid:
    axes = plan.Axes(("picture 0", "picture 1"), plan.columns_of([epochs], parse_epochs("all")), strengths, (seed,))
    sampling = render.Sampling("", "euler", "normal", 2, 2.0, 64, 64, seed)
    return render.Grid(t.model, t.text, t.codec, axes, sampling, folder, {"workflow": "{}"})


def cell_of(grid: render.Grid, page: int, column: int, row: int) -> Image.Image:
    return Image.open(grid.book.cells[page][column, row]).convert("RGB")


def test_a_grid_shows_what_the_stock_nodes_draw(tiny, dataset, tmp_path):
    """Cell by cell against LoraLoader + KSampler on the saved files."""
    t = tiny("sd3")
    epochs = go(t, dataset, recipe(optimizer=OptimizerConfig(learning_rate=5e-2))).epochs
    before = t.model.identity()
    with torch.inference_mode():
        grid = grid_of(t, epochs, tmp_path / "grids")
        grid.render(lambda done, page: None)
        stock, _ = t.model.with_lora(None, load_file(epochs.files[1].path), 0.5)
        text = t.text.for_sampling("picture 1")
        latent = host.Model(stock).sample(
            text, t.text.for_sampling(""), SamplerSettings("euler", "normal", 2, 2.0), latent_size=(8, 8), seed=3
        )
        expected = render.to_picture(t.codec.decode(latent)[0])
    cell = cell_of(grid, 1, 2, 0)
    assert np.abs(np.asarray(cell, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2
    assert cell.tobytes() != cell_of(grid, 1, 0, 0).tobytes()
    assert t.model.identity() == before


def test_a_second_grid_draws_only_what_changed(tiny, dataset, tmp_path, monkeypatch):
    t = tiny("sd3")
    epochs = go(t, dataset, recipe()).epochs
    drawn = []
    real = render.CellRenderer._pictures
    counted = lambda self, latents, n: drawn.extend([1] * n) or real(self, latents, n)  # noqa: E731
    monkeypatch.setattr(render.CellRenderer, "_pictures", counted)
    with torch.inference_mode():
        first = grid_of(t, epochs, tmp_path / "grids")
        first.render(lambda done, page: None)
        assert len(drawn) == first.axes.cells == 2 * (1 + 3 * 2)
        grid_of(t, epochs, tmp_path / "grids").render(lambda done, page: None)
        assert len(drawn) == 14
        grid_of(t, epochs, tmp_path / "grids", strengths=(0.5, 0.75, 1.0)).render(lambda done, page: None)
        assert len(drawn) == 14 + 2 * 3
    cells = sorted((tmp_path / "grids" / "cells").iterdir())
    assert len(cells) == 20
    with Image.open(cells[0]) as cell:
        assert {"prompt_text", "strength", "seed", "lora"} <= json.loads(cell.text["lora_atelier.cell"]).keys()
    path = first.save_pages()[0]
    with Image.open(path) as page:
        assert json.loads(page.text["lora_atelier.grid"])["strengths"] == [0.5, 1.0]


def test_a_bad_file_costs_its_own_cells_only(tiny, dataset, tmp_path):
    from safetensors.torch import save_file

    t = tiny("sd3")
    epochs = go(t, dataset, recipe()).epochs
    alien = tmp_path / "alien.safetensors"
    save_file({"lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2)}, alien)
    mixed = dataclasses.replace(epochs, files=(SavedLoRA(alien, 1, 1), epochs.files[-1]))
    with torch.inference_mode():
        grid = grid_of(t, mixed, tmp_path / "grids")
        grid.render(lambda done, page: None)
    failed = grid.book.cells[0][1, 0]
    assert isinstance(failed, render.Failed) and "alien" in failed.reason
    assert cell_of(grid, 0, 2, 0).size == (64, 64)


def test_a_model_is_held_to_what_it_draws_without_a_prompt(tiny, dataset):
    """At the first step the model is what it was, so holding it costs nothing; later it does."""
    t = tiny("sd15")
    short = {"length": LengthConfig(max_steps=3)}
    free = go(t, dataset, recipe("free", **short))
    held = go(t, dataset, recipe("held", loss=LossConfig(preservation=50.0, preservation_prompt='""'), **short))
    assert held.losses[0] == pytest.approx(free.losses[0], rel=1e-6) and held.losses[2] != pytest.approx(free.losses[2], rel=1e-6)
