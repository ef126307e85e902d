"""Writing captions: what is kept, what is overwritten, what a cancel leaves."""

from __future__ import annotations

import pytest
from lora_atelier.training.captioning import list_captioners, load
from lora_atelier.training.captioning.file_name import FileNameCaptioner
from lora_atelier.training.captioning.fill import fill, missing
from lora_atelier.training.captioning.protocol import Picture
from lora_atelier.training.captioning.settings import GenerationSettings
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, scan
from lora_atelier.training.errors import AtelierError
from PIL import Image

NAMES = FileNameCaptioner("openmoji emoji, {name}")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("cat-face", "crab_01", "hot-dog"):
        Image.new("RGB", (8, 8), "red").save(folder / f"{name}.png")
    return folder


def dataset(folder, **settings):
    return Dataset(scan(folder, SubsetConfig("input/set", **settings)))


def texts(folder):
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in folder.rglob("*.txt")}


def test_missing_captions_are_filled_and_others_kept(folder):
    (folder / "crab_01.txt").write_text("by hand")
    captioned, report = fill(dataset(folder), NAMES)
    assert texts(folder) == {"cat-face": "openmoji emoji, cat face", "crab_01": "by hand", "hot-dog": "openmoji emoji, hot dog"}
    assert [s.caption for s in captioned.samples] == ["openmoji emoji, cat face", "by hand", "openmoji emoji, hot dog"]
    assert ([path.name for path in report.written], report.kept) == (["cat-face.txt", "hot-dog.txt"], 1)


def test_the_disk_decides_what_is_missing(folder):
    """A dataset that was read before somebody wrote a caption must not overwrite it."""
    old = dataset(folder)
    (folder / "crab_01.txt").write_text("by hand, meanwhile")
    captioned, report = fill(old, NAMES)
    assert report.kept == 1
    assert [s.caption for s in captioned.samples][1] == "by hand, meanwhile"


def test_an_empty_caption_file_is_kept(folder):
    (folder / "crab_01.txt").write_text("")
    fill(dataset(folder), NAMES)
    assert texts(folder)["crab_01"] == ""


def test_overwriting_with_trigger_and_prefix(folder):
    (folder / "crab_01.txt").write_text("by hand")
    fill(dataset(folder), FileNameCaptioner("{name}"), "overwrite", prefix="a drawing of ", trigger="ohwx")
    assert texts(folder)["crab_01"] == "ohwx, a drawing of crab"
    _, report = fill(dataset(folder), FileNameCaptioner("{name}"), "fill missing", trigger="other")
    assert report.written == () and texts(folder)["crab_01"] == "ohwx, a drawing of crab"


def test_class_captions_stand_in_until_a_caption_is_written(tmp_path):
    (tmp_path / "5_ohwx man").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "5_ohwx man" / "1.png")
    before = dataset(tmp_path)
    assert [s.caption for s in before.samples] == ["ohwx man"]
    after, _ = fill(before, FileNameCaptioner("{folder}, portrait {name}"))
    assert [s.caption for s in after.samples] == ["ohwx man, portrait 1"]


def test_a_folder_that_is_used_twice_is_written_once(folder):
    both = dataset(folder) + dataset(folder, resolution=256)
    captioned, report = fill(both, NAMES)
    assert len(report.written) == 3
    assert all(sample.caption for sample in captioned.samples) and len(list(captioned.samples)) == 6


def test_two_pictures_that_share_a_caption_file_agree(folder):
    Image.new("RGB", (8, 8)).save(folder / "cat-face.jpg")
    captioned, report = fill(dataset(folder), NAMES)
    assert len(report.written) == 3
    assert {s.caption for s in captioned.samples if s.path.stem == "cat-face"} == {"openmoji emoji, cat face"}


def test_other_extensions(folder):
    fill(dataset(folder, caption_extension=".caption"), NAMES)
    assert (folder / "crab_01.caption").read_text() == "openmoji emoji, crab\n"


def test_a_cancel_keeps_what_is_written(folder):
    def progress(total):
        assert total == 3

        def advance(done, preview=None):
            if done == 2:
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        fill(dataset(folder), NAMES, progress=progress)
    assert sorted(texts(folder)) == ["cat-face", "crab_01"]
    _, report = fill(dataset(folder), NAMES)
    assert [path.name for path in report.written] == ["hot-dog.txt"]


class Silent:
    def caption(self, pictures):
        return ["" if picture.path.stem == "crab_01" else " words " for picture in pictures]


def test_where_no_words_are_found_nothing_is_written_and_it_is_said(folder):
    captioned, report = fill(dataset(folder), Silent(), trigger="ohwx", batch_size=2)
    assert sorted(texts(folder)) == ["cat-face", "hot-dog"]
    assert "no words were found for crab_01.png" in report.describe(captioned)
    assert "2 captions written, 0 kept" in report.describe(captioned)


def test_a_caption_file_that_cannot_be_written_is_named(folder):
    pictures = dataset(folder)
    (folder / "crab_01.txt").mkdir()
    with pytest.raises(AtelierError, match=r"crab_01\.txt: the caption cannot be written"):
        fill(pictures, NAMES, "overwrite")
    assert (folder / "cat-face.txt").read_text() == "openmoji emoji, cat face\n", "what was written before stays"


def test_filled_captions_do_not_make_the_folder_look_changed(folder):
    """Else the next run would train everything again though nothing happened in between."""
    before = folder_stamp(folder)
    fill(dataset(folder), NAMES)
    assert folder_stamp(folder) == before
    (folder / "crab_01.txt").write_text("edited")
    assert folder_stamp(folder) != before


def test_file_names_need_no_pixels(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    picture = Picture(tmp_path / "broken.png")
    assert FileNameCaptioner("{name}").caption([picture]) == ["broken"]
    assert picture.seen is None


def test_work_is_counted_before_a_model_is_loaded(folder):
    (folder / "crab_01.txt").write_text("x")
    work, kept = missing(dataset(folder), "fill missing")
    assert ([file.name for _, file in work], kept) == (["cat-face.txt", "hot-dog.txt"], 1)


def test_captioners_are_listed_and_unknown_names_refused(tmp_path):
    import torch

    assert list_captioners(tmp_path / "nothing") == ["file name"]
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip" / "config.json").write_text("{")
    (tmp_path / "no model").mkdir()
    assert list_captioners(tmp_path) == ["file name", "blip"]
    for name in ("gone", "../blip", "", "no model"):
        with pytest.raises(AtelierError, match=r"captioner: .* is not in"):
            load(name, tmp_path, "{name}", GenerationSettings(), torch.device("cpu"))
    with pytest.raises(AtelierError, match=r"captioner: .*blip.config\.json cannot be read"):
        load("blip", tmp_path, "{name}", GenerationSettings(), torch.device("cpu"))


def test_settings_that_cannot_work_name_the_widget():
    with pytest.raises(AtelierError, match="max length: 5 tokens cannot hold a caption of at least 25"):
        GenerationSettings(min_length=25, max_length=5)
    with pytest.raises(AtelierError, match="beams: 0"):
        GenerationSettings(beams=0)
