"""Folders as sd-scripts and its GUI, OneTrainer and ai-toolkit want them, and the masks that they keep there."""

from __future__ import annotations

import os

import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, scan
from lora_atelier.training.errors import AtelierError
from PIL import Image


def config(**values):
    return SubsetConfig("input/set", **values)


def picture(path, colour="red", size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def used(subsets):
    return [(subset.config.folder, subset.repeats, [s.path.name for s in subset.samples]) for subset in subsets]


def said(subsets):
    return "\n".join(text for subset in subsets for text in subset.warnings)


MASKS = [
    "cat.mask.png", "cat.MASK.PNG", "cat-masklabel.png", "cat_mask.png", "cat-mask.jpg", "mask_cat.png", "cat.mask.webp",
    "masks/cat.png", "masks/cat.jpg", "mask/cat.png", "Masks/cat.png", "mask/cat_mask.png", "masks/cat-masklabel.png",
    "masks/cat.jpg.png", "masks/Cat.png",
]  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_masks_of_other_trainers_are_masks_and_no_pictures(tmp_path, name, nested):
    picture(tmp_path / "cat.jpg")
    picture(tmp_path / "dog.jpg")
    picture(tmp_path / name, "white")
    before = folder_stamp(tmp_path)
    (subset,) = scan(tmp_path, config(masks="files", nested=nested))
    assert [(s.path.name, s.mask and s.mask.relative_to(tmp_path).as_posix()) for s in subset.samples] == [
        ("cat.jpg", name), ("dog.jpg", None),
    ]  # fmt: skip
    assert "no mask, so all of the picture is learnt: dog.jpg." in said((subset,))
    picture(tmp_path / name, "grey", (128, 96))
    assert folder_stamp(tmp_path) != before
    (plain,) = scan(tmp_path, config(nested=nested))
    assert [s.path.name for s in plain.samples] == ["cat.jpg", "dog.jpg"]
    assert f"mask files are there and not used (1): {name}. Set masks to files" in said((plain,))


@pytest.mark.parametrize("name", ["cat_mask.png", "cat-mask.png", "mask_cat.png"])
def test_a_mask_that_is_a_guess_is_said_to_be_one(tmp_path, name):
    picture(tmp_path / "cat.png")
    picture(tmp_path / name, "white")
    assert f"taken for masks by their names (1): {name}. Rename" in said(scan(tmp_path, config(masks="files")))


@pytest.mark.parametrize("name", ["venetian_mask.png", "mask_of_gold.png"])
def test_a_picture_of_a_mask_is_a_picture(tmp_path, name):
    picture(tmp_path / "cat.png")
    picture(tmp_path / name)
    (subset,) = scan(tmp_path, config())
    assert sorted(s.path.name for s in subset.samples) == sorted(["cat.png", name])
    assert f"named like masks, but trained on, as no picture has the rest of the name: {name}." in subset.warnings


def test_masks_without_a_picture_and_second_masks_are_named(tmp_path):
    picture(tmp_path / "cat.png")
    for name in ("cat.mask.png", "cat-masklabel.png", "masks/cat.png", "dog-masklabel.png", "masks/dog.png"):
        picture(tmp_path / name, "white")
    (subset,) = scan(tmp_path, config(masks="files"))
    assert [s.mask.name for s in subset.samples] == ["cat.mask.png"] or [s.mask.name for s in subset.samples] == [
        "cat-masklabel.png"
    ]
    assert "masks without a picture are not used (2): dog-masklabel.png, masks/dog.png." in said((subset,))
    assert "second masks of a picture are not used (2): " in said((subset,))


def test_a_folder_called_masks_whose_pictures_belong_to_none_is_a_folder_of_pictures(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "masks" / "venice.png")
    assert "sub-folders without a number in front are not used (1): masks." in said(scan(tmp_path, config()))
    assert used(scan(tmp_path, config(nested=True))) == [("input/set", 1, ["1.png", "venice.png"])]


def test_masks_of_sd_scripts_lie_in_a_folder_beside(tmp_path):
    """``conditioning_data_dir`` of a subset: the same file names in another folder."""
    picture(tmp_path / "8_zunda" / "1.png")
    picture(tmp_path / "8_zunda_mask" / "1.png", "white")
    picture(tmp_path / "8_zunda_mask" / "2.png", "white")
    subsets = scan(tmp_path, config(masks="files"))
    assert used(subsets) == [("input/set/8_zunda", 8, ["1.png"])]
    assert subsets[0].samples[0].mask == tmp_path / "8_zunda_mask" / "1.png"
    assert "masks without a picture are not used (1): 8_zunda_mask/2.png." in said(subsets)


CONTROLS = [
    ["cat.control.png"],
    ["cat-condlabel.png"],
    ["cat_control.png"],
    ["control/cat.png"],
    ["_controls/cat.jpg"],
    ["conditioning/cat.png"],
    ["cat.control1.png", "cat.control2.png"],
    ["cat_control_2.png", "cat_control_10.png"],
    ["control/cat_1.png", "control/cat_2.png"],  # as in musubi-tuner
    ["control_1/cat.png", "control_2/CAT.webp"],  # as several control folders in ai-toolkit
    ["cat.control_1.png", "control_2/cat.png"],
]


@pytest.mark.parametrize("names", CONTROLS, ids=" ".join)
@pytest.mark.parametrize("nested", [False, True])
def test_control_pictures_belong_to_their_picture(tmp_path, names, nested):
    picture(tmp_path / "cat.png")
    for name in names:
        picture(tmp_path / name, "blue")
    subsets = scan(tmp_path, config(nested=nested))
    assert used(subsets) == [("input/set", 1, ["cat.png"])]
    (sample,) = subsets[0].samples
    assert [one.path.relative_to(tmp_path).as_posix() for one in sample.controls] == names
    assert said(subsets) == ""
    assert "all with control pictures" in subsets[0].describe()


def test_a_folder_of_control_pictures_beside_that_of_the_pictures(tmp_path):
    picture(tmp_path / "8_zunda" / "1.png")
    picture(tmp_path / "8_zunda_control" / "1.png", "white")
    picture(tmp_path / "8_zunda_control" / "2.png", "white")
    picture(tmp_path / "8_zunda_control_2" / "1.png", "blue")
    subsets = scan(tmp_path, config())
    assert used(subsets) == [("input/set/8_zunda", 8, ["1.png"])]
    (sample,) = subsets[0].samples
    assert [one.path.parent.name for one in sample.controls] == ["8_zunda_control", "8_zunda_control_2"]
    assert "control pictures without a picture are not used (1): 8_zunda_control/2.png." in said(subsets)


def test_what_is_odd_about_pairs_is_said(tmp_path):
    for name in ("1.png", "2.png", "control/1.png", "control/1.jpg"):
        picture(tmp_path / name, "red" if name == "1.png" else "blue")
    subsets = scan(tmp_path, config(crop="random"))
    text = said(subsets)
    assert "second control pictures of one place are not used (1): control/1.png." in text
    assert "no control picture, so they are trained on by their caption alone (1): 2.png." in text
    assert "what its control picture shows, which stays whole" in text


def test_another_control_picture_is_another_dataset(tmp_path):
    picture(tmp_path / "1.png")
    alone = Dataset(scan(tmp_path, config()))
    picture(tmp_path / "control" / "1.png", "blue")
    stamp = folder_stamp(tmp_path)
    paired = Dataset(scan(tmp_path, config()))
    picture(tmp_path / "control" / "1.png", "green")
    changed = Dataset(scan(tmp_path, config()))
    assert len({one.fingerprint for one in (alone, paired, changed)}) == 3
    assert folder_stamp(tmp_path) != stamp


def test_a_broken_control_picture_is_named(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "1.png").write_bytes(b"no picture")
    with pytest.raises(AtelierError, match=r"control.1\.png"):
        scan(tmp_path, config())


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_that_the_gui_of_sd_scripts_prepared(tmp_path, nested):
    picture(tmp_path / "img" / "20_ohwx man" / "1.png")
    picture(tmp_path / "reg" / "1_man" / "1.png", "blue")
    (tmp_path / "log").mkdir()
    picture(tmp_path / "model" / "sample" / "preview.png", "green")
    subsets = scan(tmp_path, config(nested=nested))
    assert used(subsets) == [("input/set/img/20_ohwx man", 20, ["1.png"])]
    assert "regularisation pictures are not trained on with the others (1): reg. Choose their folder" in said(subsets)
    assert "log, model" in "\n".join(subsets[0].notes)
    assert used(scan(tmp_path / "reg", config(role="regularisation"))) == [("input/set/1_man", 1, ["1.png"])]


@pytest.mark.parametrize("name", ["reg", "Regularization", "regularisation_images"])
def test_regularisation_pictures_inside_the_training_tree_are_named(tmp_path, name):
    picture(tmp_path / "1.png")
    picture(tmp_path / name / "2.png", "blue")
    subsets = scan(tmp_path, config(nested=True))
    assert used(subsets) == [("input/set", 1, ["1.png"])] and "regularisation pictures" in said(subsets)


def test_concepts_with_sub_folders_as_onetrainer_has_them(tmp_path):
    for name in ("cat/1.jpg", "cat/deep/er/and/deeper/2.jpg", "dog/3.jpg"):
        picture(tmp_path / name)
    picture(tmp_path / "cat/1-masklabel.png", "white")
    subsets = scan(tmp_path, config(nested=True, masks="files"))
    assert used(subsets) == [("input/set", 1, ["2.jpg", "1.jpg", "3.jpg"])] or used(subsets) == [
        ("input/set", 1, ["1.jpg", "2.jpg", "3.jpg"])
    ]
    assert [s.mask.name for s in subsets[0].samples if s.mask] == ["1-masklabel.png"]


def test_pictures_far_below_are_named_when_nested_is_off(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "more" / "and" / "more" / "2.png")
    picture(tmp_path / "5_cat" / "3.png")
    picture(tmp_path / "5_cat" / "extra" / "4.png")
    text = said(scan(tmp_path, config()))
    assert "sub-folders without a number in front are not used (1): more." in text
    assert "sub-folders of a numbered folder are not used (1): 5_cat/extra." in text


def test_a_folder_of_captions_apart_is_named(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "1.txt").write_text("one")
    assert "folders with captions are not read (1): captions. Put every" in said(scan(tmp_path, config()))


# Links


def test_linked_sub_folders_inside_the_root_are_used_once(tmp_path):
    chosen = tmp_path / "set"
    picture(chosen / "1.png")
    picture(chosen / "more" / "2.png")
    picture(tmp_path / "other" / "3.png")
    (chosen / "linked").symlink_to(tmp_path / "other")
    (chosen / "linked too").symlink_to(tmp_path / "other")
    (chosen / "more again").symlink_to(chosen / "more")
    (chosen / "more" / "loop").symlink_to(tmp_path)
    subsets = scan(chosen, config(nested=True), root=tmp_path)
    assert used(subsets) == [("input/set", 1, ["1.png", "3.png", "2.png"])]
    assert "are not read again (3): " in "\n".join(subsets[0].notes)
    flat = scan(chosen, config(), root=tmp_path)
    assert len(flat[0].samples) == 1 and "linked" in said(flat)


@pytest.mark.parametrize("nested", [False, True])
def test_linked_sub_folders_outside_the_root_are_named(tmp_path, nested):
    chosen, secret = tmp_path / "set", tmp_path / "secret"
    picture(chosen / "1.png")
    picture(secret / "2.png")
    (chosen / "linked").symlink_to(secret)
    subsets = scan(chosen, config(nested=nested))
    assert used(subsets) == [("input/set", 1, ["1.png"])]
    assert "linked folders outside the allowed ones are not read (1): linked. Copy the pictures" in said(subsets)


@pytest.mark.parametrize("folder", ["masks", "8_zunda_mask", "control"])
def test_a_link_out_of_the_root_is_not_followed_for_masks_either(tmp_path, folder):
    chosen, secret = tmp_path / "set", tmp_path / "secret"
    picture(chosen / "8_zunda" / "1.png")
    picture(chosen / "1.png")
    picture(secret / "1.png")
    (chosen / folder).symlink_to(secret)
    try:
        subsets = scan(chosen, config(masks="files", nested=True))
    except AtelierError as error:
        assert "is a link that leads out of" in str(error)
    else:
        assert all(s.mask is None for subset in subsets for s in subset.samples) and folder in said(subsets)


def test_a_numbered_link_to_a_folder_around_it_ends(tmp_path):
    picture(tmp_path / "5_cat" / "1.png")
    (tmp_path / "5_cat" / "2_again").symlink_to(tmp_path)
    assert used(scan(tmp_path, config(nested=True))) == [("input/set/5_cat", 5, ["1.png"])]


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_sub_folder_that_may_not_be_read_is_named(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "more").mkdir(mode=0)
    with pytest.raises(AtelierError, match="more cannot be read"):
        scan(tmp_path, config(nested=True))


def test_a_chosen_folder_has_the_companions_beside_it(tmp_path):
    root = tmp_path / "input"
    picture(root / "cats" / "1.png")
    picture(root / "cats_control" / "1.png", "blue")
    picture(root / "cats_mask" / "1.png", "white")
    picture(root / "cats_control" / "9.png", "blue")
    picture(root / "dogs_control" / "1.png", "green")
    subsets = scan(root / "cats", config(masks="files"), root)
    (sample,) = subsets[0].samples
    assert [one.path for one in sample.controls] == [root / "cats_control" / "1.png"]
    assert sample.mask == root / "cats_mask" / "1.png"
    assert "control pictures without a picture are not used (1): 9.png." in said(subsets)


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_of_control_pictures_is_never_trained_on(tmp_path, nested):
    picture(tmp_path / "1.png")
    picture(tmp_path / "control" / "9.png", "blue")
    subsets = scan(tmp_path, config(nested=nested))
    assert used(subsets) == [("input/set", 1, ["1.png"])]
    assert "control pictures without a picture are not used (1): control/9.png." in said(subsets)


def test_a_broken_control_picture_can_be_left_out_with_its_picture(tmp_path):
    for name in ("1.png", "2.png", "control/2.png"):
        picture(tmp_path / name)
    (tmp_path / "control" / "1.png").write_bytes(b"no picture")
    subsets = scan(tmp_path, config(broken="leave out"))
    assert used(subsets) == [("input/set", 1, ["2.png"])]
    assert "1.png: left out with its control picture." in said(subsets)
    (tmp_path / "2.png").unlink()
    with pytest.raises(AtelierError, match=r"left out with its control picture"):
        scan(tmp_path, config(broken="leave out"))
