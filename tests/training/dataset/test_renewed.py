"""Datasets whose files have changed since they were read: what is trained on is what lies there now."""

from __future__ import annotations

import pytest
from lora_atelier.training.config import SliderConfig, SubsetConfig
from lora_atelier.training.dataset.renewed import renewed, unlike
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.sliders import slider_of
from lora_atelier.training.errors import AtelierError
from PIL import Image

from .made_films import levels, write

CONFIG = SubsetConfig("input/set", masks="files")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "control_2").mkdir()
    for number, name in enumerate(("a.png", "a.mask.png", "a_control.png", "control_2/a.png", "b.png")):
        Image.new("RGB", (32, 16), (number, 0, 0)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["a.png", "a.mask.png", "a_control.png", "control_2/a.png"])
def test_whatever_was_drawn_over_is_read_as_a_scan_reads_it(folder, name):
    before = Dataset(scan(folder, CONFIG))
    Image.new("RGB", (32, 16), "blue").save(folder / name)
    after, notes = renewed(before)
    now = Dataset(scan(folder, CONFIG))
    assert after.subsets[0].samples == now.subsets[0].samples and after.fingerprint == now.fingerprint != before.fingerprint
    assert notes == ("changed meanwhile, and trained on as they are now: a.png.",)


@pytest.mark.parametrize("name", ["a.mask.png", "a_control.png", "control_2/a.png"])
def test_what_was_taken_away_is_not_waited_for(folder, name):
    before = Dataset(scan(folder, CONFIG))
    (folder / name).unlink()
    assert renewed(before)[0].subsets[0].samples == Dataset(scan(folder, CONFIG)).subsets[0].samples


def test_what_has_not_changed_is_the_same(folder):
    before = Dataset(scan(folder, CONFIG))
    assert renewed(before) == (before, ())


@pytest.fixture
def pair(folder):
    for name in ("a_control.png", "b.png", "a.mask.png"):
        (folder / name).unlink()
    return slider_of(Dataset(scan(folder, CONFIG)), SliderConfig("pairs of pictures"))


def test_both_pictures_of_a_pair_are_read_anew(folder, pair):
    assert renewed(pair) == (pair, ())
    for name in ("a.png", "control_2/a.png"):
        Image.new("RGB", (16, 32)).save(folder / name)
    after, notes = renewed(pair)
    (now,) = after.samples
    assert (now.width, now.height) == (now.before.width, now.before.height) == (16, 32) and notes


@pytest.mark.parametrize("name", ["a.png", "control_2/a.png"])
def test_a_pair_that_was_turned_in_half_is_told(folder, pair, name):
    Image.new("RGB", (16, 32)).save(folder / name)
    with pytest.raises(AtelierError, match=r"control_2.a\.png: it has .* another shape than a\.png"):
        renewed(pair)


def test_a_pair_without_its_other_end_is_told(folder, pair):
    (folder / "control_2" / "a.png").unlink()
    with pytest.raises(AtelierError, match=r"control_2.a\.png: this picture, from before a\.png, was taken out"):
        renewed(pair)


@pytest.fixture
def films(tmp_path):
    for name, seed in (("a.mkv", 1), ("b.mkv", 2)):
        write(tmp_path / name, levels(12, seed=seed))
        Image.new("RGB", (64, 48), "white").save(tmp_path / f"{name[0]}.mask.png")
    return tmp_path


CLIPS = SubsetConfig("input/films", masks="files", clip_frames="5", clip_start="chunks", resolution=64, bucket_step=16)


def test_films_that_stay_are_the_same_and_others_are_read_as_a_scan_reads_them(films):
    before = Dataset(scan(films, CLIPS))
    assert len(list(before.samples)) == 4 and renewed(before) == (before, ())
    write(films / "a.mkv", levels(16, seed=3))
    after, notes = renewed(before)
    assert after.subsets[0].samples == Dataset(scan(films, CLIPS)).subsets[0].samples and len(list(after.samples)) == 5
    assert notes == ("changed meanwhile, and trained on as they are now: a.mkv.",)


def test_a_films_mask_is_read_anew_for_all_clips(films):
    before = Dataset(scan(films, CLIPS))
    Image.new("RGB", (64, 48), "black").save(films / "b.mask.png")
    after, notes = renewed(before)
    assert after.subsets[0].samples == Dataset(scan(films, CLIPS)).subsets[0].samples and "b.mkv" in notes[0]


def test_films_that_are_gone_or_too_short_by_now_are_named_once(films):
    before = Dataset(scan(films, CLIPS))
    write(films / "a.mkv", levels(3))
    after, notes = renewed(before)
    assert [sample.path.name for sample in after.samples] == ["b.mkv", "b.mkv"]
    assert notes == ("changed meanwhile, have too few frames for clip_frames now, and are not trained on: a.mkv.",)
    (films / "a.mkv").unlink()
    assert renewed(before)[1] == ("taken out meanwhile, and not trained on: a.mkv.",)


@pytest.mark.parametrize("name", ["a.png", "a.mask.png", "a_control.png", "control_2/a.png"])
def test_files_that_are_others_on_another_machine_are_named(folder, name):
    before = Dataset(scan(folder, CONFIG))
    assert unlike(before) == []
    Image.new("RGB", (32, 16), "blue").save(folder / name)
    assert unlike(before) == [name.rpartition("/")[2]]
    (folder / name).unlink()
    assert unlike(before) == [name.rpartition("/")[2]]


def test_a_pair_is_known_on_another_machine(folder, pair):
    assert unlike(pair) == []
    Image.new("RGB", (32, 16), "blue").save(folder / "control_2" / "a.png")
    assert unlike(pair) == ["a.png"]


def test_a_film_that_is_another_on_another_machine_is_named_once(films):
    clips = Dataset(scan(films, CLIPS))
    assert unlike(clips) == []
    write(films / "a.mkv", levels(12, seed=5))
    assert unlike(clips) == ["a.mkv"]
