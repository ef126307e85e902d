"""Datasets whose files have changed since they were read: what is trained on is what lies there now."""

from __future__ import annotations

import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.renewed import renewed
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from PIL import Image

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
