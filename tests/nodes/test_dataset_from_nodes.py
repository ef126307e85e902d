"""DatasetFromNodes inside ComfyUI: what the stock nodes give enters as it is, and what cannot be trained on is named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_atelier.training.errors import AtelierError
from PIL import Image

SIZES = ((64, 64), (96, 32), (64, 64))


@pytest.fixture
def node(comfyui):
    from lora_atelier.nodes.dataset_from_nodes import DatasetFromNodes

    return DatasetFromNodes


@pytest.fixture
def folder(comfyui, tmp_path, monkeypatch):
    """``input/shapes`` with three captioned pictures; the host's folders lie in this test's own place."""
    import folder_paths

    for name in ("input", "temp", "user"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    folder = tmp_path / "input" / "shapes"
    folder.mkdir()
    stream = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        Image.fromarray(stream.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}, red")
    return folder


def widgets(node, **changes):
    """Every widget's value as the host gives it to a node that takes lists."""
    values = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs if hasattr(entry, "default")}
    values.pop("texts", None)
    return {name: [value] for name, value in {**values, "resolution": 64, "bucket_step": 32, **changes}.items()}


def stock(folder):
    """(images, texts) of the stock loader, by the file's number."""
    from comfy_extras.nodes_dataset import LoadImageTextDataSetFromFolderNode

    with torch.inference_mode():
        images, texts = LoadImageTextDataSetFromFolderNode.execute(folder.name).result
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    return [images[i] for i in order], [texts[i] for i in order]


def test_every_input_has_a_tooltip_and_stands_in_the_help(node, root: Path):
    schema = node.GET_SCHEMA()
    assert (schema.node_id, schema.display_name, schema.is_input_list) == ("DatasetFromNodes", "Dataset From Nodes", True)
    assert all(len(entry.tooltip) > 20 for entry in [*schema.inputs, *schema.outputs])
    page = (root / "js" / "docs" / "DatasetFromNodes.md").read_text(encoding="utf-8")
    assert [entry.id for entry in schema.inputs if f"`{entry.id}`" not in page] == []


def test_the_stock_loaders_pictures_come_in_level_for_level(node, folder):
    images, texts = stock(folder)
    output = node.execute(images=images, texts=texts, **widgets(node, batch_size=2, repeats=3))
    (subset,) = output.result[0].subsets
    assert [(s.width, s.height, s.caption) for s in subset.samples] == [
        (*size, f"picture {i}, red") for i, size in enumerate(SIZES)
    ]
    for i, sample in enumerate(subset.samples):
        with Image.open(sample.path) as ours, Image.open(folder / f"{i}.png") as original:
            assert np.array_equal(np.asarray(ours), np.asarray(original))
        assert sample.path.is_relative_to(folder.parent.parent / "user")
    (text,) = output.ui["text"]
    assert "nodes/images: 3 pictures x 3" in text and "| 64 x 64 | 2 | 6 | 3 | 2 |" in text and "5 steps an epoch" in text
    assert len(output.ui["thumbnails"]) == len(output.ui["pictures"]) == 3


def test_batches_count_as_their_pictures_and_one_text_serves_all(node, folder):
    images = [torch.rand(2, 64, 64, 3), torch.rand(1, 64, 64, 1), torch.rand(1, 64, 64, 4)]
    (subset,) = node.execute(images=images, texts=["ohwx\n in  red "], **widgets(node)).result[0].subsets
    assert [s.caption for s in subset.samples] == ["ohwx in  red"] * 4
    modes = []
    for sample in subset.samples:
        with Image.open(sample.path) as image:
            modes.append(image.mode)
    assert modes == ["RGB", "RGB", "L", "RGBA"]


def test_settings_reach_the_dataset_and_datasets_chain(node, folder):
    images, texts = stock(folder)
    first = node.execute(images=images, texts=texts, **widgets(node, role="regularisation", crop="random", variants=0)).result[0]
    both = node.execute(images=images, dataset=[first], **widgets(node, flip=True, caption_prefix="ohwx, ")).result[0]
    prior, own = (subset.config for subset in both.subsets)
    assert (prior.role, prior.crop, prior.variants) == ("regularisation", "random", 0)
    assert (own.role, own.flip, own.caption_prefix) == ("training", True, "ohwx, ")
    assert [s.caption for s in both.subsets[1].samples] == [None, None, None], "no text was connected"


def test_pictures_are_written_once_and_again_when_they_are_gone(node, folder):
    images, texts = stock(folder)
    before = node.fingerprint_inputs(**widgets(node))
    first = node.execute(images=images, texts=texts, **widgets(node)).result[0]
    stamps = [s.path.stat().st_mtime_ns for s in first.samples]
    second = node.execute(images=images, texts=texts, **widgets(node)).result[0]
    assert [s.path.stat().st_mtime_ns for s in second.samples] == stamps and second.fingerprint == first.fingerprint
    assert node.fingerprint_inputs(**widgets(node)) == before
    next(iter(first.samples)).path.unlink()
    changed = node.fingerprint_inputs(**widgets(node))
    assert changed != before
    node.execute(images=images, texts=texts, **widgets(node))
    assert next(iter(first.samples)).path.is_file() and node.fingerprint_inputs(**widgets(node)) == changed


def test_the_longest_unused_pictures_go_first_when_the_disk_share_is_full(node, folder, monkeypatch):
    from lora_atelier.training.dataset import from_nodes

    def used(sample, days):
        seconds = sample.path.stat().st_mtime
        os.utime(sample.path, (time.time() - days * 86_400, seconds))

    images, _ = stock(folder)
    old = node.execute(images=images, texts=["one"], **widgets(node)).result[0].subsets[0].samples
    for sample, days in zip(old, (3, 5, 4), strict=True):
        used(sample, days)
    old[1].path.with_suffix(".txt").write_text("edited")
    size = sum(sample.path.stat().st_size for sample in old)
    changed = old[0].path.stat().st_mtime_ns
    # A new set as large as the old one, with room for it and one old picture.
    monkeypatch.setattr(from_nodes, "LIMIT", size + max(s.path.stat().st_size for s in old))
    new = node.execute(images=images, texts=["two"], **widgets(node)).result[0].subsets[0].samples
    assert [sample.path.is_file() for sample in old] == [True, False, False] and all(s.path.is_file() for s in new)
    assert old[1].path.with_suffix(".txt").read_text() == "edited"
    # What is used again counts as new, without looking changed; and what is in use stays even where there is too little room.
    monkeypatch.setattr(from_nodes, "LIMIT", 0)
    again = node.execute(images=images, texts=["one"], **widgets(node)).result[0].subsets[0].samples
    assert all(sample.path.is_file() for sample in (*again, *new))
    assert again[1].caption == "edited" and old[0].path.stat().st_mtime_ns == changed


def test_auto_caption_writes_beside_the_pictures_and_another_text_wins_again(node, folder):
    from lora_atelier.training.captioning.existing import ExistingCaptioner
    from lora_atelier.training.captioning.fill import fill
    from lora_atelier.training.captioning.text import TextWork
    from lora_atelier.training.dataset.captions import write_caption

    images, _ = stock(folder)
    dataset = node.execute(images=images, texts=["one"], **widgets(node)).result[0]
    for sample in dataset.samples:
        write_caption(sample.path.with_suffix(".txt"), "a file")
    captioned, _ = fill(dataset, ExistingCaptioner(), "overwrite", TextWork(trigger="ohwx"))
    assert [s.caption for s in captioned.samples] == ["ohwx, a file"] * 3
    again = node.execute(images=images, texts=["one"], **widgets(node)).result[0]
    assert [s.caption for s in again.samples] == ["ohwx, a file"] * 3
    other = node.execute(images=images, texts=["two"], **widgets(node)).result[0]
    assert [s.caption for s in other.samples] == ["two"] * 3


def latent(channels=4, width=8, height=8, batch=1, seed=0, **extras):
    stream = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(batch, channels, height, width, generator=stream), **extras}


def text(seed=0, tokens=77, **extras):
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(1, tokens, 768, generator=stream), extras]


def test_latents_are_buckets_of_their_own(node, folder):
    from lora_atelier.training.dataset.plan import Plan

    output = node.execute(
        latents=[latent(batch=2), latent(width=12, height=5, seed=1)],
        conditioning=[[text(i)] for i in range(3)],
        **{**widgets(node, batch_size=2, repeats=2), "resolution": [512], "bucket_step": [64]},
    )
    assert [row.size for row in Plan(output.result[0], 0).bucket_table()] == [(64, 64), (96, 40)]
    assert "nodes/latents: 3 latents x 2, sizes as they are, batch 2, all with conditioning" in output.ui["text"][0]
    assert output.ui["thumbnails"] == []


def test_a_latents_own_scale_and_mask_are_heard(node, folder):
    given = latent(width=4, height=4, downscale_ratio_spacial=16, noise_mask=torch.ones(1, 64, 64))
    output = node.execute(latents=[given], conditioning=[[text()]], **{**widgets(node), "resolution": [512], "bucket_step": [64]})
    assert [(s.width, s.height) for s in output.result[0].samples] == [(64, 64)]
    assert "noise masks are not used" in output.ui["text"][0]


NAN = torch.full((1, 64, 64, 3), float("nan"))
PICTURE = torch.zeros(1, 64, 64, 3)
MASK = torch.ones(1, 64, 64)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "images: nothing is connected"),
        ({"images": []}, "images: the list is empty"),
        ({"images": [PICTURE, PICTURE[..., :2]]}, r"images: number 2 is no picture of 1, 3 or 4 channels \(\(1, 64, 64, 2\)\)"),
        ({"images": [PICTURE, NAN]}, "images: number 2 holds NaN"),
        ({"images": [PICTURE] * 3, "texts": ["a", "b"]}, "texts: there are 2 for 3 pictures"),
        ({"images": [PICTURE], "texts": []}, "texts: there are 0 for 1 picture"),
        ({"images": [PICTURE, PICTURE], "texts": ["a", None]}, "texts: number 2 is NoneType and no text"),
        ({"images": [PICTURE], "texts": [3]}, "texts: number 1 is int and no text"),
        ({"texts": ["a"]}, "images: nothing is connected"),
        ({"images": [PICTURE] * 3, "control": [PICTURE] * 2}, "control: there are 2 for 3 pictures"),
        ({"images": [PICTURE], "control": [NAN]}, "control: number 1 holds NaN"),
        ({"images": [PICTURE] * 3, "masks": [MASK] * 2}, "masks: there are 2 for 3 pictures"),
        ({"images": [PICTURE], "masks": [MASK] * 2}, "masks: there are 2 for 1 picture.*individual_masks"),
        ({"images": [PICTURE], "masks": []}, "masks: the list is empty"),
        ({"images": [PICTURE], "masks": ["a"]}, "masks: number 1 is no mask"),
        ({"images": [PICTURE], "masks": [torch.zeros(2, 3, 64, 64)]}, "masks: number 1 is no mask"),
        ({"images": [PICTURE], "masks": [MASK * NAN[..., 0]]}, "masks: number 1 holds NaN"),
        ({"images": [PICTURE] * 2, "masks": [MASK, MASK[:, :40]]}, "masks: number 2 has 64 x 40 pixels and another shape"),
        ({"images": [PICTURE[:, :40]], "masks": [MASK * 0]}, "number 1 has 64 x 64.*Load Image gives an empty mask"),
        ({"latents": [latent()], "conditioning": [[text()]], "masks": [MASK]}, "masks: they belong to images"),
        ({"images": [PICTURE], "control_2": ["a"]}, "control_2: number 1 is no picture"),
        ({"latents": [latent()], "conditioning": [[text()]], "control": [PICTURE]}, "control: control pictures of latents are"),
        ({"latents": [latent()]}, "conditioning: they belong to the latents"),
        ({"conditioning": [[text()]]}, "latents: they belong to the conditioning"),
        (
            {"latents": [latent()], "conditioning": [[text()]], "images": [PICTURE]},
            "images: latents or conditioning are connected",
        ),
        ({"latents": [latent()], "conditioning": [[text()]], "texts": ["a"]}, "texts: latents or conditioning are connected"),
        ({"latents": [], "conditioning": [[text()]]}, "latents: the list is empty"),
        ({"latents": [latent()], "conditioning": [[]]}, "conditioning: the list is empty"),
        ({"latents": [latent(batch=3)], "conditioning": [[text()], [text()]]}, "conditioning: there are 2 for 3 latents"),
        ({"latents": [latent(), latent(16)], "conditioning": [[text()]]}, "latents: number 2 has 16 channels and number 1 has 4"),
        ({"latents": [{"samples": NAN}], "conditioning": [[text()]]}, "latents: number 1 holds NaN"),
        ({"latents": [{"samples": NAN[0]}], "conditioning": [[text()]]}, "latents: number 1 is not the latent"),
        ({"latents": [latent()], "conditioning": [[[NAN[0, :1], {}]]]}, "conditioning: number 1 holds NaN"),
        ({"latents": [latent()], "conditioning": [[text(guidance=float("nan"))]]}, "number 1 holds NaN .* in 'guidance'"),
        ({"latents": [latent()], "conditioning": [[text(pooled_output=NAN[0, 0])]]}, "number 1 holds NaN .* in 'pooled_output'"),
        ({"latents": [latent()], "conditioning": [[text(byt5=NAN[0, 0])]]}, "number 1 holds NaN .* in 'byt5'"),
        ({"latents": [latent()], "conditioning": [None]}, "conditioning: number 1 is not the encoding of one text"),
        ({"latents": [latent()], "conditioning": [[None]]}, "conditioning: number 1 is not the encoding of one text"),
        ({"latents": [None], "conditioning": [[text()]]}, "latents: number 1 is not the latent"),
        ({"latents": [latent()], "conditioning": [[[NAN, {}]]]}, "conditioning: number 1 is not the encoding of one text"),
        ({"latents": [latent()], "conditioning": [[text(control=object())]]}, "conditioning: number 1 carries 'control'"),
    ],
)
def test_what_cannot_be_trained_on_is_named(node, folder, inputs, message):
    with pytest.raises(AtelierError, match=message):
        node.execute(**inputs, **{**widgets(node), "resolution": [512], "bucket_step": [64]})


def test_control_pictures_by_wire_belong_to_each_picture(node, folder):
    images, texts = stock(folder)
    others = [torch.rand(1, 40 + 8 * i, 64, 3) for i in range(3)]
    (dataset,) = node.execute(images=images, texts=texts, control=others, control_2=[others[0]], **widgets(node)).result
    samples = dataset.subsets[0].samples
    assert [[(one.width, one.height) for one in sample.controls] for sample in samples] == [
        [(64, 40 + 8 * i), (64, 40)] for i in range(3)
    ]
    stored = np.asarray(Image.open(samples[1].controls[0].path))
    assert np.abs(stored - others[1][0].numpy() * 255).max() <= 0.51
    (alone,) = node.execute(images=images, texts=texts, **widgets(node)).result
    assert alone.fingerprint != dataset.fingerprint and not alone.subsets[0].samples[0].controls


def test_masks_by_wire_are_what_mask_files_are(node, folder):
    """The very same latents and masks as a folder's with these masks beside the pictures."""
    from lora_atelier.training.config import SubsetConfig
    from lora_atelier.training.dataset import scan
    from lora_atelier.training.dataset.plan import FIXED, size_of
    from lora_atelier.training.dataset.views import view

    images, texts = stock(folder)
    stream = np.random.default_rng(1)
    masks = [stream.integers(0, 256, (height // 2, width // 2), np.uint8) for width, height in SIZES]
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{i}.mask.png")
    given = [torch.from_numpy(mask).float()[None] / 255 for mask in masks]
    wired = node.execute(images=images, texts=texts, masks=given, **widgets(node, crop="random", mask_floor=0.3)).result[0]
    config = SubsetConfig("input/shapes", resolution=64, bucket_step=32, crop="random", masks="files", mask_floor=0.3)
    (filed,) = scan.scan(folder, config)
    (subset,) = wired.subsets
    assert (subset.config.masks, subset.config.mask_floor) == ("files", 0.3)
    for one, other in zip(subset.samples, filed.samples, strict=True):
        shown = [view(s, config, size_of(s, config), 0, FIXED).mask_levels(s) for s in (one, other)]
        assert torch.equal(*shown)
    plain = node.execute(images=images, texts=texts, **widgets(node)).result[0]
    assert plain.subsets[0].config.masks == "off" and plain.fingerprint != wired.fingerprint


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64), (1, 1, 64, 64), (1, 64, 64, 1)])
def test_one_mask_serves_all_in_any_of_its_forms(node, folder, shape):
    half = torch.zeros(64, 64)
    half[:, :32] = 1
    pictures = [torch.rand(2, 64, 64, 3), torch.rand(1, 128, 128, 3)]
    (subset,) = node.execute(images=pictures, masks=[half.view(shape)], **widgets(node)).result[0].subsets
    assert len({sample.mask for sample in subset.samples}) == 1 and not subset.warnings
    with Image.open(subset.samples[0].mask) as stored:
        assert np.array_equal(np.asarray(stored), half.numpy() * 255)


@pytest.mark.parametrize(("floor", "said"), [(0.1, "all of such a picture is learnt"), (0.0, "nothing of such a picture")])
def test_masks_with_which_nothing_was_found_are_named(node, folder, floor, said):
    given = [torch.zeros(1, 64, 64), torch.ones(1, 64, 64), torch.zeros(1, 64, 64)]
    output = node.execute(images=[PICTURE] * 3, texts=["a"], masks=given, **widgets(node, mask_floor=floor))
    assert f"masks: 2 of 3 are black all over (1, 3), and {said}" in output.ui["text"][0]


def test_the_latents_of_an_edit_models_conditioning_come_along(node, folder):
    from lora_atelier.training import host
    from lora_atelier.training.dataset import precomputed
    from lora_atelier.training.dataset.cache import TensorCache
    from lora_atelier.training.tensors import references

    first, second = torch.rand(1, 4, 6, 8), torch.rand(1, 4, 8, 8)
    (dataset,) = node.execute(
        latents=[latent()], conditioning=[[text(reference_latents=[first, second], reference_latents_method="index")]],
        **{**widgets(node), "resolution": [512], "bucket_step": [64]},
    ).result  # fmt: skip
    (sample,) = dataset.subsets[0].samples
    found = precomputed.unpacked(TensorCache(host.cache_folder(), 2**30).get(sample.ready.text))
    assert [torch.equal(a, b) for a, b in zip(references.listed(found), (first, second), strict=True)] == [True, True]
    assert found["reference_latents_method"] == "index"


@pytest.mark.parametrize(
    ("widget", "value"), [("crop", "random"), ("flip", True), ("shuffle_captions", True), ("resolution", 64), ("variants", 0)]
)
def test_settings_that_latents_cannot_have_are_refused(node, folder, widget, value):
    values = {**widgets(node), "resolution": [512], "bucket_step": [64], widget: [value]}
    with pytest.raises(AtelierError, match=f"{widget.replace('_', ' ')}: latents are trained on as they are, so {value!r}"):
        node.execute(latents=[latent()], conditioning=[[text()]], **values)


def test_auto_caption_passes_latents_over(node, folder):
    from lora_atelier.training.captioning.fill import workload

    values = {**widgets(node), "resolution": [512], "bucket_step": [64]}
    encoded = node.execute(latents=[latent()], conditioning=[[text()]], **values).result[0]
    with pytest.raises(AtelierError, match="no picture to caption"):
        workload(encoded, "overwrite")
    both = node.execute(images=[PICTURE], dataset=[encoded], **values).result[0]
    assert len(workload(both, "overwrite").work) == 1
