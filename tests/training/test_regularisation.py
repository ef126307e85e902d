"""Regularisation sets drawn by real tiny models: what is kept, what is refused, how a set is trained with."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training import host, regularisation
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid.render import Sampling
from PIL import Image

SAMPLING = Sampling("blurry", "euler", "normal", 2, 3.0, 64, 64, 40)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "reg" / "1_man"


def order(count: int = 3, prompts=("a man", "a tall man"), **sampling) -> regularisation.Order:
    return regularisation.Order(tuple(prompts), count, dataclasses.replace(SAMPLING, **sampling))


def make(t, folder, wanted: regularisation.Order, graph=None) -> regularisation.RegularisationSet:
    return regularisation.RegularisationSet(t.model, t.text, t.codec, wanted, folder, graph or {})


def render(t, folder, wanted: regularisation.Order, batch: int = 1, advance=lambda *_: None, **more) -> regularisation.SetState:
    with torch.inference_mode():  # as the graph runs its nodes
        return make(t, folder, wanted, more.pop("graph", None)).render(batch, advance, **more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def drawn_by_the_host(t, prompt: str, seed: int) -> np.ndarray:
    """What CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode and SaveImage do, by the host's own functions."""
    import comfy.sample

    clip, patcher = t.text.clip, t.model.patcher
    with torch.inference_mode():
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "blurry")]
        latent = comfy.sample.fix_empty_latent_channels(patcher, torch.zeros(1, 4, 8, 8))
        noise = comfy.sample.prepare_noise(latent, seed)
        drawn = comfy.sample.sample(patcher, noise, 2, 3.0, "euler", "normal", *texts, latent, disable_pbar=True, seed=seed)
        return (255.0 * t.codec.vae.decode(drawn)[0].cpu().float().numpy()).clip(0, 255).astype(np.uint8)


def test_the_published_sum_is_750_names_and_seeds(comfyui):
    """R5: 30 pictures x 25 repeats."""
    planned = regularisation.Order(("a photo of a man",), 25 * 30, SAMPLING).pictures()
    assert len({p.name for p in planned}) == len({p.seed for p in planned}) == 750
    assert (planned[0].name, planned[0].seed) == ("reg-00000.png", 40)
    assert (planned[-1].name, planned[-1].seed) == ("reg-00749.png", 789)
    assert [p.name for p in planned] == sorted(p.name for p in planned)


def test_prompts_are_taken_in_turn_and_a_larger_count_only_adds(comfyui):
    small, large = order(4, "abc").pictures(), order(7, "abc").pictures()
    assert [p.prompt for p in large] == list("abcabca") and large[:4] == small


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 7))
def test_batches_hold_every_picture_once_and_one_prompt_each(prompts, size):
    planned = [regularisation.Planned(i, f"{i}", prompt, i) for i, prompt in enumerate(prompts)]
    groups = list(regularisation.batches(planned, size))
    assert sorted(p.index for group in groups for p in group) == list(range(len(prompts)))
    assert all(1 <= len(group) <= size and len({p.prompt for p in group}) == 1 for group in groups)
    assert len(groups) == sum(-(-prompts.count(prompt) // size) for prompt in set(prompts))


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_a_set_is_drawn_as_the_stock_nodes_draw_it_and_says_how(tiny, folder, name):
    t = tiny(name)
    shown = []
    state = render(t, folder, order(), advance=lambda *given: shown.append(given), graph={"workflow": '{"nodes": ["ü"]}'})
    assert names(folder) == ["reg-00000.png", "reg-00001.png", "reg-00002.png"]
    assert (len(state.kept), len(state.missing), state.broken) == (0, 3, ())
    assert [done for done, _ in shown] == [1, 2, 3] and all(picture.size == (64, 64) for _, picture in shown)
    assert np.array_equal(drawn_by_the_host(t, "a tall man", 41), pixels(folder / "reg-00001.png"))
    with Image.open(folder / "reg-00001.png") as image:
        facts, workflow = json.loads(image.info["lora_atelier.regularisation"]), image.info["workflow"]
    assert json.loads(workflow) == {"nodes": ["ü"]}
    assert {k: facts[k] for k in ("prompt_text", "negative", "seed", "sampler", "scheduler", "steps", "cfg", "width")} == {
        "prompt_text": "a tall man", "negative": "blurry", "seed": 41, "sampler": "euler", "scheduler": "normal", "steps": 2,
        "cfg": 3.0, "width": 64,
    }  # fmt: skip


def test_the_model_stays_as_it_was(tiny, folder):
    t = tiny("sd3")
    before = {k: v.clone() for k, v in t.model.base.diffusion_model.state_dict().items()}
    identities = (t.model.identity(), t.text.identity(), t.codec.identity())
    render(t, folder, order())
    after = t.model.base.diffusion_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert (t.model.identity(), t.text.identity(), t.codec.identity()) == identities


def test_batches_draw_the_same_pictures(tiny, folder, tmp_path):
    """Each begins with its own seed's noise; what is left is rounding."""
    t = tiny("sd3")
    done = []
    render(t, folder, order(5), batch=2, advance=lambda n, picture=None: done.append(n))
    assert done == [2, 4, 5]
    render(t, tmp_path / "single", order(5))
    for name in names(folder):
        assert np.abs(pixels(folder / name) - pixels(tmp_path / "single" / name)).max() <= 2
    different = [np.abs(pixels(folder / "reg-00000.png") - pixels(folder / name)).max() for name in names(folder)[1:]]
    assert min(different) > 2


def test_a_cancelled_set_keeps_whole_files_and_is_completed(tiny, folder):
    from comfy.model_management import InterruptProcessingException

    t = tiny("sd3")

    def cancel(done, picture=None):
        if done == 2:
            raise InterruptProcessingException()

    with pytest.raises(InterruptProcessingException):
        render(t, folder, order(4), advance=cancel)
    assert names(folder) == ["reg-00000.png", "reg-00001.png"]
    first = contents(folder)
    state = render(t, folder, order(4))
    assert [p.name for p in state.missing] == ["reg-00002.png", "reg-00003.png"]
    assert {name: contents(folder)[name] for name in first} == first and len(names(folder)) == 4


def test_a_cancel_while_a_picture_is_being_drawn_leaves_no_part_of_it(tiny, folder):
    """The host raises from within the sampler's second picture."""
    import comfy.model_management as management

    def press(done, picture=None):
        management.interrupt_current_processing(True)

    try:
        with pytest.raises(management.InterruptProcessingException):
            render(tiny("sd3"), folder, order(3), advance=press)
    finally:
        management.interrupt_current_processing(False)
    assert names(folder) == ["reg-00000.png"] and pixels(folder / "reg-00000.png").shape == (64, 64, 3)


def test_nothing_is_drawn_twice_and_a_count_below_takes_nothing_away(tiny, folder, monkeypatch):
    t = tiny("sd3")
    render(t, folder, order(3))
    before = contents(folder)
    monkeypatch.setattr(host.Model, "sample", lambda *_, **__: pytest.fail("drawn again"))
    progress = []
    for count in (3, 2):
        state = render(t, folder, order(count), advance=lambda *given: progress.append(given))
        assert len(state.kept) == count and not state.missing
    assert contents(folder) == before and progress == [(3,), (2,)]


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: data[:200], lambda data: b"", lambda data: b"hello"])
def test_a_broken_picture_is_drawn_anew(tiny, folder, damage):
    t = tiny("sd3")
    render(t, folder, order(2))
    path = folder / "reg-00001.png"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    state = render(t, folder, order(2))
    assert state.broken == ("reg-00001.png",) and [p.index for p in state.missing] == [1]
    assert path.read_bytes() == whole and state.remarks() == ["reg-00001.png could not be read and was drawn anew."]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 3}, r"other settings \(steps 2 in place of 3\), and so is 1 more"),
        ({"seed": 41}, r"other settings \(seed 40 in place of 41\), and so is 1 more"),
        ({"cfg": 4.5, "sampler": "heun"}, r"\(sampler_name 'euler' in place of 'heun', cfg 3\.0 in place of 4\.5\), and so"),
        ({"prompts": ("a man", "a cat")}, r"reg-00001\.png: .* \(prompts 'a tall man' in place of 'a cat'\)\. Nothing"),
        ({"negative": "x" * 99}, r"negative 'blurry' in place of 'x{56}\.\.\.\)"),
    ],
)
def test_other_settings_are_named_before_anything_is_drawn(tiny, folder, change, said):
    t = tiny("sd3")
    render(t, folder, order(2))
    before = contents(folder)
    with pytest.raises(AtelierError, match=said) as error:
        render(t, folder, order(4, **change))
    assert str(folder) in str(error.value) and "Nothing is overwritten: write another folder" in str(error.value)
    assert contents(folder) == before


def test_another_model_is_named(tiny, folder):
    render(tiny("sd3"), folder, order(1))
    with pytest.raises(AtelierError, match=r"\(another model, another text encoder, another VAE\)"):
        render(tiny("sd15"), folder, order(1))


def test_guidance_that_a_node_has_laid_on_the_model_counts(tiny, folder):
    from comfy_extras.nodes_model_advanced import RescaleCFG
    from lora_atelier.training import host

    t = tiny("sd3")
    render(t, folder, order())
    with torch.inference_mode():
        (rescaled,) = RescaleCFG().patch(t.model.patcher, 0.7)
    other = SimpleNamespace(model=host.Model(rescaled), text=t.text, codec=t.codec)
    with pytest.raises(AtelierError, match=r"\(another model\)"):
        render(other, folder, order())


def test_a_picture_of_somebody_else_is_never_overwritten(tiny, folder):
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "reg-00001.png")
    before = contents(folder)
    with pytest.raises(AtelierError, match=r"reg-00001\.png: this picture is there already and does not say with which settings"):
        render(tiny("sd3"), folder, order(3))
    assert contents(folder) == before


def test_a_place_that_is_no_file_is_named(tiny, folder):
    (folder / "reg-00000.png").mkdir(parents=True)
    with pytest.raises(AtelierError, match=r"reg-00000\.png: this cannot be read"):
        render(tiny("sd3"), folder, order(1))


def test_a_full_disk_names_the_file_and_keeps_the_others(tiny, folder, monkeypatch):
    from lora_atelier.training import files

    real, full = os.fsync, []

    def fsync(descriptor):
        full.append(descriptor)
        if len(full) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(AtelierError, match=r"reg-00001\.png: the disk is full; make room and queue again"):
        render(tiny("sd3"), folder, order(3))
    assert names(folder) == ["reg-00000.png"]


def test_a_folder_that_cannot_be_made_or_written_is_named(tiny, folder, monkeypatch):
    t = tiny("sd3")
    folder.parent.write_text("a file")
    with pytest.raises(AtelierError, match=r"folder: .*1_man cannot be made"):
        render(t, folder, order(1))
    folder.parent.unlink()
    real = os.replace

    def refuse(source, target):
        if str(target).endswith(".png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(AtelierError, match=r"reg-00000\.png: the picture cannot be written \(Permission denied\)"):
        render(t, folder, order(1))
    assert names(folder) == []


def test_lost_numbers_are_not_saved_as_black_pictures(tiny, folder, monkeypatch):
    real = host.PictureCodec.decode
    monkeypatch.setattr(host.PictureCodec, "decode", lambda self, latents: real(self, latents * float("nan")))
    with pytest.raises(AtelierError, match=r"reg-00000\.png: it was not saved\. vae: .* NaN or infinite.*--fp32-vae"):
        render(tiny("sd3"), folder, order(1))
    assert names(folder) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 0}, "count: 0"),
        ({"count": 100_001}, "count: 100001"),
        ({"steps": 0}, "steps: 0"),
        ({"width": 8}, "width: 8"),
        ({"height": 99_999}, "height: 99999"),
        ({"cfg": float("nan")}, "cfg: nan"),
        ({"cfg": -1.0}, r"cfg: -1\.0"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**64 - 2}, "seed: 18446744073709551614 leaves no seed for each of 3 pictures"),
        ({"sampler": "eular"}, "sampler_name: this ComfyUI has no 'eular'"),
        ({"scheduler": "none"}, "scheduler: this ComfyUI has no 'none'"),
        ({"prompts": ()}, "prompts: write at least one prompt"),
    ],
)
def test_what_cannot_be_drawn_names_its_widget(comfyui, change, said):
    with pytest.raises(AtelierError, match=f"^{said}"):
        order(**change)


def test_the_last_seed_is_possible(comfyui):
    assert order(3, seed=2**64 - 3).pictures()[-1].seed == 2**64 - 1


def test_sizes_and_batches_that_the_models_cannot_do_are_named(tiny, folder):
    t = tiny("sd3")
    with pytest.raises(AtelierError, match=r"^height: 100 is not a multiple of 8, the VAE's cell; try 96\."):
        make(t, folder, order(height=100))
    with pytest.raises(AtelierError, match=r"^render_batch_size: 0"):
        render(t, folder, order(), batch=0)
    for name in ("0_man", "10001_man"):
        with pytest.raises(AtelierError, match=f"folder: {name} asks for"):
            regularisation.check_repeats(folder.with_name(name))


def test_prompts_become_captions_where_there_is_none(tiny, folder):
    t = tiny("sd3")
    render(t, folder, order(2))
    assert not list(folder.glob("*.txt"))
    (folder / "reg-00000.txt").write_text("edited by hand", encoding="utf-8")
    render(t, folder, order(3), captions=True)
    texts = [path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))]
    assert texts == ["edited by hand", "a tall man", "a man"]


def test_the_stamp_ignores_what_is_drawn_here_and_notices_everything_else(tiny, folder):
    t, root = tiny("sd3"), folder.parents[1]

    def stamp():
        return regularisation.set_stamp(folder, root, 3)

    first = stamp()
    render(t, folder, order(3), captions=True)
    assert stamp() == first
    (folder / "reg-00001.txt").write_text("an older man")
    second = stamp()
    (folder / "reg-00002.png").unlink()
    third = stamp()
    Image.new("RGB", (64, 64)).save(folder / "mine.png")
    assert len({first, second, third, stamp()}) == 4


def test_the_set_is_seen_as_often_as_the_training_pictures(tiny, folder, tmp_path):
    """2 pictures x 5 repeats are 10 sightings; 3 regularisation pictures have 10 as well, captioned by their class."""
    render(tiny("sd3"), folder, order(3))
    subject = tmp_path / "img" / "5_ohwx man"
    subject.mkdir(parents=True)
    for i in range(2):
        noise_picture((64, 64), 40 + i, i).save(subject / f"{i}.png")
    training = scan(subject, SubsetConfig("input/img/5_ohwx man", 64))
    prior = scan(folder, SubsetConfig("input/reg/1_man", 64, role="regularisation", loss_weight=0.5))
    plan = Plan(Dataset(training + prior), 0)
    assert [row.sightings for row in plan.bucket_table()] == [10, 10] and plan.steps_per_epoch == 20
    assert {s.caption for s in prior[0].samples} == {"man"} and prior[0].repeats == 1
    seen = [i for batch in plan.epoch_batches(0) if batch.subset == 1 for i in batch.samples]
    assert sorted(seen.count(i) for i in range(3)) == [3, 3, 4]


def test_prompts_are_plain_text_and_another_reading_is_another_picture(tiny, folder):
    t = tiny("sd15")
    plain, meant = t, SimpleNamespace(**{**vars(t), "text": t.text.reading("ComfyUI")})
    render(meant, folder, order(2, ["a (tall:9) man", "a man"]))
    assert np.array_equal(drawn_by_the_host(t, "a (tall:9) man", 40), pixels(folder / "reg-00000.png"))
    with pytest.raises(
        AtelierError, match=r"reg-00000\.png: this picture is there already and .*prompt_syntax 'ComfyUI' in place of 'plain'"
    ):
        render(plain, folder, order(2, ["a (tall:9) man", "a man"]))
    other = folder.parent / "1_other"
    render(plain, other, order(2, ["a (tall:9) man", "a man"]))
    assert np.array_equal(drawn_by_the_host(t, "a \\(tall:9\\) man", 40), pixels(other / "reg-00000.png"))
    assert np.array_equal(pixels(other / "reg-00001.png"), pixels(folder / "reg-00001.png")), "no sign, no difference"
    with pytest.raises(
        AtelierError, match=r"reg-00000\.png: this picture is there already and .*prompt_syntax 'plain' in place of 'ComfyUI'"
    ):
        render(meant, other, order(2, ["a (tall:9) man", "a man"]))


def test_prompts_without_signs_are_the_same_pictures_in_both(tiny, folder):
    t = tiny("sd15")
    render(SimpleNamespace(**{**vars(t), "text": t.text.reading("ComfyUI")}), folder, order(2))
    before = contents(folder)
    state = render(t, folder, order(2))
    assert len(state.kept) == 2 and contents(folder) == before
