"""Loss masks: where they come from, and that they are cut as their pictures are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import masks
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, scan
from lora_atelier.training.dataset.views import view
from lora_atelier.training.errors import AtelierError
from PIL import Image


def config(**values):
    return SubsetConfig("input/x", **{"resolution": 64, **values})


def half_white(size=(128, 64)):
    """White on the left half."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[:, : size[0] // 2] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """a.jpg has a mask beside it, b.png one in the folder ``masks``, c.png none."""
    for i, name in enumerate(("a.jpg", "b.png", "c.png")):
        Image.new("RGB", (128, 64), (i, 200, 90)).save(tmp_path / name)
    half_white().save(tmp_path / "a.mask.png")
    (tmp_path / "masks").mkdir()
    half_white((64, 32)).save(tmp_path / "masks" / "b.png")
    return tmp_path


def test_masks_are_found_and_are_no_pictures(folder):
    (subset,) = scan(folder, config(masks="files"))
    assert [s.path.name for s in subset.samples] == ["a.jpg", "b.png", "c.png"]
    assert [s.mask and s.mask.name for s in subset.samples] == ["a.mask.png", "b.png", None]
    assert any("no mask, so all of the picture is learnt: c.png" in text for text in subset.warnings)


def test_masks_that_are_not_used_are_mentioned(folder):
    (subset,) = scan(folder, config())
    assert len(subset.samples) == 3 and all(s.mask is None for s in subset.samples)
    assert any("Set masks to files" in text for text in subset.warnings)


def test_a_mask_is_scaled_cut_and_mirrored_with_its_picture(folder):
    samples = scan(folder, config(masks="files"))[0].samples
    for sample in samples[:2]:
        mask = view(sample, config(), (64, 64)).mask(sample)
        assert mask.shape == (64, 64) and mask[:, :30].min() > 0.95 and mask[:, 34:].max() < 0.05
    flipping = config(flip=True)
    views = [view(samples[0], flipping, (64, 64), 0, n) for n in range(12)]
    assert {shown.flipped for shown in views} == {True, False}
    for shown in views:
        left = shown.mask(samples[0])[:, :30].mean()
        assert (left < 0.05) == shown.flipped
    assert len({shown.parts for shown in views}) == 2


def test_latent_cells_get_the_mean_of_their_pixels():
    mask = torch.zeros(16, 16)
    mask[:8, :4] = 1
    assert masks.to_latent_size(mask, (2, 2)).tolist() == [[[0.5, 0.0], [0.0, 0.0]]]


def test_transparency_as_a_mask(tmp_path):
    picture = Image.new("RGB", (128, 64), "red")
    picture.putalpha(half_white())
    picture.save(tmp_path / "cut.png")
    Image.new("RGB", (128, 64), "red").save(tmp_path / "opaque.png")
    cut, opaque = scan(tmp_path, config(masks="alpha"))[0].samples
    assert view(cut, config(), (64, 64)).mask(cut)[0, 0] == 1 and view(cut, config(), (64, 64)).mask(cut)[0, -1] == 0
    assert view(opaque, config(), (64, 64)).mask(opaque).min() == 1


def test_a_mask_of_another_shape_is_named(folder):
    """When the folder is read, and again should it change between that and the training."""
    sample = scan(folder, config(masks="files"))[0].samples[0]
    half_white((64, 64)).save(folder / "a.mask.png")
    with pytest.raises(AtelierError, match=r"a\.mask\.png: this mask has 64 x 64 pixels and another shape than a\.jpg"):
        scan(folder, config(masks="files"))
    with pytest.raises(AtelierError, match=r"a\.mask\.png: this mask has 64 x 64 pixels and another shape than a\.jpg"):
        view(sample, config(), (64, 64)).mask(sample)


def test_a_broken_mask_and_a_mask_linked_from_elsewhere_are_named(folder, tmp_path_factory):
    sample = scan(folder, config(masks="files"))[0].samples[0]
    whole = (folder / "a.mask.png").read_bytes()
    for content in (b"no picture", whole[: len(whole) // 2]):
        (folder / "a.mask.png").write_bytes(content)
        with pytest.raises(AtelierError, match=r"a\.mask\.png: this picture cannot be read"):
            scan(folder, config(masks="files"))
        with pytest.raises(AtelierError, match=r"a\.mask\.png: this picture cannot be read"):
            view(sample, config(), (64, 64)).mask(sample)
    outside = tmp_path_factory.mktemp("outside") / "m.png"
    half_white().save(outside)
    (folder / "a.mask.png").unlink()
    (folder / "a.mask.png").symlink_to(outside)
    with pytest.raises(AtelierError, match=r"a\.mask\.png: this is a link that leads out"):
        scan(folder, config(masks="files"))


def test_a_changed_mask_changes_the_stamp_and_the_fingerprint(folder):
    def seen():
        return folder_stamp(folder), Dataset(scan(folder, config(masks="files"))).fingerprint

    before = seen()
    half_white().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "masks" / "b.png")
    after = seen()
    assert before[0] != after[0] and before[1] != after[1]
