"""Writing captions: what is kept, what is overwritten, what a cancel leaves."""

from __future__ import annotations

import pytest
from lora_atelier.training.captioning import list_captioners, load
from lora_atelier.training.captioning.existing import ExistingCaptioner
from lora_atelier.training.captioning.file_name import FileNameCaptioner
from lora_atelier.training.captioning.fill import fill, workload
from lora_atelier.training.captioning.protocol import Picture
from lora_atelier.training.captioning.settings import GenerationSettings, TaggerSettings
from lora_atelier.training.captioning.text import TextWork
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
    fill(dataset(folder), FileNameCaptioner("{name}"), "overwrite", TextWork("ohwx", "a drawing of "))
    assert texts(folder)["crab_01"] == "ohwx, a drawing of crab"
    _, report = fill(dataset(folder), FileNameCaptioner("{name}"), "fill missing", TextWork("other"))
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
    looks = False

    def caption(self, pictures):
        return ["" if picture.path.stem == "crab_01" else " words " for picture in pictures]


def test_where_no_words_are_found_nothing_is_written_and_it_is_said(folder):
    captioned, report = fill(dataset(folder), Silent(), text=TextWork("ohwx"), batch_size=2)
    assert sorted(texts(folder)) == ["cat-face", "hot-dog"]
    assert "no words were found for crab_01.png" in report.describe(captioned)
    assert "2 captions written, 0 kept" in report.describe(captioned)


class InTheWay:
    """Puts a folder where the second caption is to be written, which fails for every user, root too."""

    looks = False

    def caption(self, pictures):
        if pictures[0].path.stem == "crab_01":
            pictures[0].path.with_suffix(".txt").mkdir()
        return ["words"] * len(pictures)


def test_a_caption_file_that_cannot_be_written_is_named(folder):
    with pytest.raises(AtelierError, match=r"crab_01\.txt: the caption cannot be written"):
        fill(dataset(folder), InTheWay(), "overwrite")
    assert (folder / "cat-face.txt").read_text() == "words\n", "what was written before stays"


@pytest.mark.parametrize("mode", ["fill missing", "overwrite", "append"])
def test_a_caption_file_that_cannot_be_read_is_named_before_anything_is_written(folder, mode):
    pictures = dataset(folder)
    (folder / "hot-dog.txt").mkdir()
    with pytest.raises(AtelierError, match=r"hot-dog\.txt: the caption cannot be read"):
        fill(pictures, NAMES, mode)
    assert [path.name for path in folder.glob("*.txt")] == ["hot-dog.txt"]


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
    assert not FileNameCaptioner.looks and not ExistingCaptioner.looks


def test_work_is_counted_before_a_model_is_loaded(folder):
    (folder / "crab_01.txt").write_text("x")
    todo = workload(dataset(folder), "fill missing")
    assert [task.file.name for task in todo.work] == ["cat-face.txt", "hot-dog.txt"]
    assert [task.file.name for task in todo.kept] == ["crab_01.txt"]


def test_regularisation_pictures_are_left_alone_unless_somebody_asks(folder, tmp_path):
    prior = tmp_path / "reg" / "1_man"
    prior.mkdir(parents=True)
    Image.new("RGB", (8, 8), "blue").save(prior / "anyone.png")
    (prior / "kept.txt").write_text("no picture has this name")
    both = dataset(folder) + dataset(tmp_path / "reg", role="regularisation")
    captioned, report = fill(both, NAMES, "overwrite")
    assert len(texts(folder)) == 3 and not (prior / "anyone.txt").exists()
    assert [s.caption for s in captioned.subsets[1].samples] == ["man"]
    assert "Note: 1 regularisation picture left alone" in report.describe(captioned)
    captioned, report = fill(both, NAMES, regularisation=True)
    assert [path.name for path in report.written] == ["anyone.txt"] and "regularisation" not in report.describe(captioned)
    assert [s.caption for s in captioned.subsets[1].samples] == ["openmoji emoji, anyone"]


def test_a_picture_that_is_learnt_as_well_is_captioned(folder):
    fill(dataset(folder, role="regularisation") + dataset(folder), NAMES)
    assert len(texts(folder)) == 3


def test_pictures_for_validation_are_captioned(folder):
    fill(dataset(folder, role="validation"), NAMES)
    assert len(texts(folder)) == 3


def test_captioners_are_listed_and_unknown_names_refused(tmp_path):
    import torch

    without = ["file name", "existing captions", "connected clip"]
    assert list_captioners(tmp_path / "nothing") == without
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip" / "config.json").write_text("{")
    (tmp_path / "no model").mkdir()
    (tmp_path / ".half.partial").mkdir()
    (tmp_path / ".half.partial" / "config.json").write_text("{}")
    assert list_captioners(tmp_path) == [*without, "blip"], "a download under way is no captioner yet"
    for name in ("gone", "../blip", "", "no model"):
        with pytest.raises(AtelierError, match=r"captioner: .* is not in"):
            load(name, tmp_path, "{name}", GenerationSettings(), torch.device("cpu"))
    with pytest.raises(AtelierError, match=r"captioner: .*blip.config\.json cannot be read"):
        load("blip", tmp_path, "{name}", GenerationSettings(), torch.device("cpu"))
    (tmp_path / "blip" / "config.json").write_text("{}")
    with pytest.raises(AtelierError, match=r"captioner: .*blip.config\.json names no model_type"):
        load("blip", tmp_path, "{name}", GenerationSettings(), torch.device("cpu"))
    with pytest.raises(AtelierError, match="captioner: 'connected clip' needs a language model at the input clip"):
        load("connected clip", tmp_path, "{name}", GenerationSettings(), torch.device("cpu"))


def test_settings_that_cannot_work_name_the_widget():
    with pytest.raises(AtelierError, match="max length: 5 tokens cannot hold a caption of at least 25"):
        GenerationSettings(min_length=25, max_length=5)
    with pytest.raises(AtelierError, match="beams: 0"):
        GenerationSettings(beams=0)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_a_threshold_that_is_no_probability_names_the_widget(value):
    with pytest.raises(AtelierError, match=r"general_threshold: .* is not between 0 and 1"):
        TaggerSettings(general=value)
    with pytest.raises(AtelierError, match=r"character_threshold: .* is not between 0 and 1"):
        TaggerSettings(character=value)


class Says:
    """A captioner with fixed words for every picture."""

    looks = True

    def __init__(self, **words):
        self.words = words

    def caption(self, pictures):
        return [self.words[picture.path.stem[:3]] for picture in pictures]


SAYS = Says(cat="cat, red hat, solo", cra="crab, solo", hot="dog, bun, solo, bun")


def test_appending_adds_what_is_not_there_and_does_so_once(folder):
    (folder / "crab_01.txt").write_text("ohwx, by hand, Solo\n")
    for _ in range(2):
        fill(dataset(folder), SAYS, "append", TextWork("ohwx"))
        assert texts(folder) == {
            "cat-face": "ohwx, cat, red hat, solo",
            "crab_01": "ohwx, by hand, Solo, crab",
            "hot-dog": "ohwx, dog, bun, solo, bun",
        }


def test_appending_leaves_an_empty_caption_empty(folder):
    (folder / "crab_01.txt").write_text("")
    _, report = fill(dataset(folder), SAYS, "append")
    assert texts(folder)["crab_01"] == "" and report.kept == 1


def test_ordered_by_frequency_in_the_dataset_the_frame_stays_outside(folder):
    """solo is in all four captions with the kept one, the others are in one; the kept file itself is not touched."""
    (folder / "crab_01.txt").write_text("crab, bun, solo")
    fill(dataset(folder), SAYS, text=TextWork("ohwx", suffix=", end", deduplicate=True, order="by frequency"))
    assert texts(folder) == {
        "cat-face": "ohwx, solo, cat, red hat, end", "crab_01": "crab, bun, solo", "hot-dog": "ohwx, solo, bun, dog, end",
    }  # fmt: skip


def test_work_on_existing_captions_alone(folder):
    """Recipe R3's second half: tags exist, fixed features leave, a trigger comes; twice is once."""
    (folder / "cat-face.txt").write_text("1girl, blue_eyes, solo")
    (folder / "crab_01.txt").write_bytes("blue eyes, café".encode("cp1252"))
    work = TextWork("ohwx", remove=("blue eyes",), spaces=True)
    for _ in range(2):
        _, report = fill(dataset(folder), ExistingCaptioner(), "overwrite", work)
        assert texts(folder) == {"cat-face": "ohwx, 1girl, solo", "crab_01": "ohwx, café"}
        assert [path.name for path in report.empty] == ["hot-dog.png"]


def test_another_encoding_is_read_reported_and_written_as_utf8(folder):
    (folder / "crab_01.txt").write_bytes("café".encode("cp1252"))
    captioned, report = fill(dataset(folder), ExistingCaptioner(), "overwrite")
    assert "Note: crab_01.txt was read as Windows-1252 and written anew as UTF-8." in report.describe(captioned)
    assert (folder / "crab_01.txt").read_bytes() == "café\n".encode()
    (folder / "crab_01.txt").write_bytes("café".encode("cp1252"))
    captioned, report = fill(dataset(folder), NAMES)
    assert "Note: crab_01.txt was read as Windows-1252; save it as UTF-8" in report.describe(captioned)
    assert (folder / "crab_01.txt").read_bytes() == "café".encode("cp1252"), "kept means kept"


def test_a_dry_run_shows_before_and_after_and_writes_nothing(folder):
    (folder / "crab_01.txt").write_text("old | caption\n")
    (folder / "hot-dog.txt").write_text("ohwx, dog, bun, solo, bun\n")
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    before = dataset(folder)
    after, report = fill(before, SAYS, "overwrite", TextWork("ohwx"), dry_run=True)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    assert after == before and report.written == ()
    lines = report.describe(after).splitlines()
    assert lines[:2] == ["3 captions would be written, 0 kept", "Dry run: nothing was changed on the disk."]
    assert lines[3:8] == [
        "| picture | before | after |",
        "| --- | --- | --- |",
        "| cat-face.png | (none) | ohwx, cat, red hat, solo |",
        "| crab_01.png | old \\| caption | ohwx, crab, solo |",
        "| hot-dog.png | ohwx, dog, bun, solo, bun | (the same) |",
    ]
    assert "| ohwx | 3 |" in lines, "the tags are counted as they would be"


def test_tags_are_counted_in_the_report_as_in_the_lora_file(folder):
    from lora_atelier.training.dataset.tags import tag_frequency

    captioned, report = fill(dataset(folder), SAYS)
    lines = report.describe(captioned).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[lines.index("| --- | --- |") + 1 :]]
    assert {tag: int(count) for tag, count in rows} == tag_frequency(captioned)["1_set"]
    assert rows[0] == ["solo", "3"]


def test_a_file_that_would_stay_as_it_is_is_not_written_again(folder):
    fill(dataset(folder), NAMES)
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*.txt")}
    fill(dataset(folder), NAMES, "overwrite")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.txt")} == stamps


def test_the_picture_that_is_looked_at_is_shown_before_its_batch(folder):
    seen, names = [], []

    def progress(total):
        return lambda done, preview=None: seen.append((done, preview and preview.size, len(list(folder.glob("*.txt")))))

    fill(dataset(folder), SAYS, batch_size=2, progress=progress, show=names.append)
    assert seen == [(0, (8, 8), 0), (2, (8, 8), 2), (3, None, 3)]
    assert names == ["cat-face.png (1 of 3)", "hot-dog.png (3 of 3)"]


def test_file_names_show_no_picture_for_they_read_none(folder):
    seen = []
    fill(dataset(folder), NAMES, progress=lambda total: lambda done, preview=None: seen.append(preview))
    assert set(seen) == {None}
