"""Writing captions: what is kept, what is overwritten, what a cancel leaves."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from lora_atelier.tests.training.dataset.made_films import decoded, levels, write
from lora_atelier.training.captioning import list_captioners, load
from lora_atelier.training.captioning.existing import ExistingCaptioner
from lora_atelier.training.captioning.file_name import FileNameCaptioner
from lora_atelier.training.captioning.fill import fill, workload
from lora_atelier.training.captioning.protocol import CutShort, Picture
from lora_atelier.training.captioning.settings import GenerationSettings, TaggerSettings
from lora_atelier.training.captioning.text import TextWork, repeats
from lora_atelier.training.config import SliderConfig, SubsetConfig
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, scan
from lora_atelier.training.dataset.sliders import slider_of
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


def texts_beside(folder):
    return list(folder.glob("*.txt"))


def originals(folder):
    """What is kept of captions that were overwritten."""
    return sorted(path.read_bytes() for path in folder.glob(".earlier-captions/*"))


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


def test_captions_that_a_slider_does_not_read_are_told(folder):
    slid = slider_of(dataset(folder), SliderConfig(positive="old", negative="young"))
    (note,) = [note for note in fill(slid, NAMES)[1].notes if "slider" in note]
    assert "reads no captions" in note and dataset(folder).subsets[0].config.folder in note
    assert not [note for note in workload(dataset(folder), "overwrite").notes if "slider" in note]


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
    assert report.written == () and "class caption says more than a file name: anyone.png" in report.describe(captioned)
    captioned, report = fill(both, FileNameCaptioner("{folder}, {name}"), regularisation=True)
    assert [path.name for path in report.written] == ["anyone.txt"] and "regularisation" not in report.describe(captioned)
    assert [s.caption for s in captioned.subsets[1].samples] == ["man, anyone"]


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
        _, report = fill(dataset(folder, caption_encoding="windows-1252"), ExistingCaptioner(), "overwrite", work)
        assert (folder / "cat-face.txt").read_text() == "ohwx, 1girl, solo\n"
        assert (folder / "crab_01.txt").read_bytes() == "ohwx, café\n".encode("cp1252")
        assert [path.name for path in report.empty] == ["hot-dog.png"]


RUSSIAN = "рыжая кошка сидит на красном диване"


def test_a_guess_is_never_written_back(folder):
    (folder / "crab_01.txt").write_bytes(RUSSIAN.encode("cp1251"))
    for captioner, mode in ((ExistingCaptioner(), "overwrite"), (SAYS, "append")):
        with pytest.raises(AtelierError, match=r"crab_01\.txt: that these files are WINDOWS-1251 is a guess"):
            fill(dataset(folder), captioner, mode, TextWork("ohwx"))
        assert (folder / "crab_01.txt").read_bytes() == RUSSIAN.encode("cp1251") and len(texts_beside(folder)) == 1
    captioned, report = fill(dataset(folder), NAMES)
    assert "captions were read as WINDOWS-1251, a guess by their letters: crab_01.txt" in report.describe(captioned)
    assert (folder / "crab_01.txt").read_bytes() == RUSSIAN.encode("cp1251"), "kept means kept"


def test_with_the_persons_word_a_file_keeps_its_encoding_where_it_can(folder):
    for encoding, declared in (("cp1251", "windows-1251"), ("koi8_r", "koi8-r"), ("utf-16", "detect"), ("utf-8-sig", "detect")):
        (folder / "crab_01.txt").write_bytes(RUSSIAN.encode(encoding))
        fill(dataset(folder, caption_encoding=declared), ExistingCaptioner(), "overwrite", TextWork("ohwx"))
        assert (folder / "crab_01.txt").read_bytes() == f"ohwx, {RUSSIAN}\n".encode(encoding)
    (folder / "crab_01.txt").write_bytes(RUSSIAN.encode("cp1251"))
    captioned, report = fill(dataset(folder, caption_encoding="windows-1251"), ExistingCaptioner(), "overwrite", TextWork("猫"))
    assert (folder / "crab_01.txt").read_text(encoding="utf-8") == f"猫, {RUSSIAN}\n"
    assert "Note: written anew as UTF-8: crab_01.txt." in report.describe(captioned)


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
    rows = [line.strip("| ").split(" | ") for line in lines[lines.index("| tag | pictures |") + 2 :]]
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


def with_table(folder, **captions):
    rows = (json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in captions.items())
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")


def test_captions_from_a_table_are_kept_and_worked_on(folder):
    with_table(folder, crab_01="a crab in a table")
    before = (folder / "metadata.jsonl").read_bytes()
    captioned, report = fill(dataset(folder), NAMES)
    assert sorted(texts(folder)) == ["cat-face", "hot-dog"] and report.kept == 1
    assert [s.caption for s in captioned.samples][1] == "a crab in a table"
    assert "a table, another file or another node describes them: crab_01.png" in report.describe(captioned)
    fill(dataset(folder), SAYS, "append")
    assert texts(folder)["crab_01"] == "a crab in a table, crab, solo"
    (folder / "crab_01.txt").unlink()
    fill(dataset(folder), ExistingCaptioner(), "overwrite", TextWork("ohwx"))
    assert texts(folder)["crab_01"] == "ohwx, a crab in a table"
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_an_empty_text_in_a_table_is_kept_like_an_empty_file(folder):
    with_table(folder, crab_01="")
    for mode in ("fill missing", "append"):
        fill(dataset(folder), NAMES, mode)
        assert "crab_01" not in texts(folder)


def test_wired_captions_are_kept(tmp_path):
    import torch
    from lora_atelier.training.dataset.from_nodes import subset_of

    subset = subset_of([torch.rand(2, 8, 8, 3)], ["a wired caption", ""], SubsetConfig("nodes/images"), tmp_path)
    captioned, report = fill(Dataset((subset,)), NAMES)
    assert [s.caption for s in captioned.samples] == ["a wired caption", ""] and report.kept == 2
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize("class_caption", ["", "an octopus"])
def test_a_class_caption_is_stronger_than_a_file_name_and_weaker_than_a_look(tmp_path, class_caption):
    said = class_caption or "ohwx man"
    folder = tmp_path / "5_ohwx man"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "crab.png")
    captioned, report = fill(dataset(tmp_path, class_caption=class_caption), NAMES)
    assert [s.caption for s in captioned.samples] == [said] and not texts(tmp_path) and report.kept == 1
    assert "Write {folder} into pattern" in report.describe(captioned)
    captioned, report = fill(dataset(tmp_path, class_caption=class_caption), SAYS)
    assert texts(tmp_path) == {"crab": "crab, solo"}
    assert "take the place of a class caption and do not say it: crab.png" in report.describe(captioned)
    (folder / "crab.txt").unlink()
    fill(dataset(tmp_path, class_caption=class_caption), NAMES, text=TextWork(said.upper()))
    assert texts(tmp_path) == {"crab": f"{said.upper()}, openmoji emoji, crab"}
    (folder / "crab.txt").unlink()
    fill(dataset(tmp_path, class_caption=class_caption), NAMES, "append")
    assert texts(tmp_path) == {"crab": f"{said}, openmoji emoji, crab"}


@pytest.mark.parametrize("name", ["crab_01.wd14", "crab_01.caption", "crab_01.png.tags", "CRAB_01.Tags"])
def test_a_caption_file_that_is_not_read_is_not_shadowed(folder, name):
    (folder / name).write_text("by hand, elsewhere")
    for mode in ("fill missing", "append"):
        captioned, report = fill(dataset(folder), NAMES, mode)
        assert not (folder / "crab_01.txt").exists() and (folder / name).read_text() == "by hand, elsewhere"
        assert f"{name} beside crab_01.png" in report.describe(captioned)
    fill(dataset(folder), NAMES, "overwrite")
    assert (folder / "crab_01.txt").exists() and (folder / name).read_text() == "by hand, elsewhere"


def test_a_dry_run_foresees_further_captions_beside_what_it_would_write(folder):
    (folder / "crab_01.short.txt").write_text("crab")
    there = dataset(folder, further_captions=".short.txt")
    _, report = fill(there, NAMES, "overwrite", dry_run=True)
    captioned, _ = fill(there, NAMES, "overwrite")
    expected = ["openmoji emoji, cat face", "openmoji emoji, crab\ncrab", "openmoji emoji, hot dog"]
    assert [s.caption for s in report.foreseen.samples] == [s.caption for s in captioned.samples] == expected


@pytest.mark.parametrize("name", ["crab_01.TXT", "CRAB_01.txt", "crab_01.png.txt", "CRAB_01.PNG.TXT"])
def test_a_caption_file_of_another_name_is_kept_worked_on_and_written_where_it_is(folder, name):
    (folder / name).write_text("crab, solo")
    captioned, report = fill(dataset(folder), NAMES)
    assert [s.caption for s in captioned.samples][1] == "crab, solo" and (folder / name).read_text() == "crab, solo"
    assert report.kept == 1 and "left alone" not in report.describe(captioned)
    _, report = fill(dataset(folder), ExistingCaptioner(), "overwrite", TextWork("ohwx"), dry_run=True)
    assert [s.caption for s in report.foreseen.samples][1] == "ohwx, crab, solo"
    fill(dataset(folder), ExistingCaptioner(), "overwrite", TextWork("ohwx"))
    fill(dataset(folder), SAYS, "append")
    assert (folder / name).read_text() == "ohwx, crab, solo\n"
    fill(dataset(folder), NAMES, "overwrite")
    assert [s.caption for s in dataset(folder).samples][1] == (folder / name).read_text().strip() == "openmoji emoji, crab"
    assert len([path for path in folder.iterdir() if "crab" in path.name.lower()]) == 2, "picture and caption"
    assert originals(folder).count(b"crab, solo") == 1


def test_pictures_that_share_a_stem_keep_captions_of_their_whole_names(folder):
    """A usual caption file for one of them would be that of the other as well, in the place of its own."""
    Image.new("RGB", (8, 8), "blue").save(folder / "crab_01.jpg")
    (folder / "crab_01.png.txt").write_text("a red crab")
    fill(dataset(folder), SAYS)
    captions = {s.path.name: s.caption for s in dataset(folder).samples}
    assert (captions["crab_01.png"], captions["crab_01.jpg"]) == ("a red crab", "crab, solo")
    assert (folder / "crab_01.jpg.txt").exists() and not (folder / "crab_01.txt").exists()


def test_a_table_in_the_folder_around_describes_the_pictures_of_numbered_folders(folder):
    for name in ("cat-face.png", "hot-dog.png"):
        (folder / "10_thing").mkdir(exist_ok=True)
        (folder / name).rename(folder / "10_thing" / name)
    rows = [{"file_name": "10_thing/cat-face.png", "text": "a tabby"}, {"file_name": "crab_01.png", "text": "a crab"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = dataset(folder)
    assert [s.caption for s in data.samples] == ["a crab", "a tabby", "thing"]
    assert not any("metadata" in text for subset in data.subsets for text in (*subset.warnings, *subset.notes))
    fill(data, SAYS)
    assert list(texts(folder)) == ["hot-dog"], "what the table describes is kept"
    (folder / "crab_01.png").unlink()
    assert next(s.caption for s in dataset(folder).samples) == "a tabby"


@pytest.mark.skipif(os.name == "nt", reason="Windows counts letters, and the whole path")
@pytest.mark.parametrize("letter", ["n", "图"])
def test_names_as_long_as_a_system_allows_are_captioned(folder, letter):
    name = letter * (251 // len(letter.encode()))
    Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    fill(dataset(folder), FileNameCaptioner("a thing"))
    fill(dataset(folder), FileNameCaptioner("another"), "overwrite")
    assert (folder / f"{name}.txt").read_text() == "another\n" and b"a thing\n" in originals(folder)
    if letter == "n":
        with pytest.raises(AtelierError, match=r"nnn\.caption: the caption cannot be written .*Shorten the picture's name\."):
            fill(dataset(folder, caption_extension=".caption"), FileNameCaptioner("more"), "overwrite")


@pytest.mark.parametrize("blank", [b"", b" \n", b"\t\r\n", "\ufeff".encode(), "\u200b\n".encode()])
def test_a_file_of_nothing_that_can_be_seen_is_an_empty_caption(folder, blank):
    (folder / "crab_01.txt").write_bytes(blank)
    captioned, report = fill(dataset(folder), NAMES)
    assert (folder / "crab_01.txt").read_bytes() == blank and [s.caption for s in captioned.samples][1] == ""
    assert "caption files without a word, which were kept: crab_01.txt" in report.describe(captioned)


def test_what_is_overwritten_is_kept_every_time_and_to_the_byte(folder):
    by_hand = b"\xef\xbb\xbfby hand,\r\nin two lines"
    (folder / "crab_01.txt").write_bytes(by_hand)
    captioned, report = fill(dataset(folder), SAYS, "overwrite", TextWork(order="by frequency"))
    assert originals(folder) == [by_hand], "a second writing in the same pass keeps nothing of its own"
    assert "what was there before is kept in .earlier-captions: crab_01.txt." in report.describe(captioned)
    first = (folder / "crab_01.txt").read_bytes()
    fill(dataset(folder), ExistingCaptioner(), "overwrite", TextWork("ohwx"))
    assert {by_hand, first} < set(originals(folder))
    fill(dataset(folder), ExistingCaptioner(), "overwrite", TextWork("ohwx"))
    assert len(originals(folder)) == 4, "nothing changed, so nothing more is kept"
    assert len(dataset(folder).subsets) == 1 and len(list(dataset(folder, nested=True).samples)) == 3


class Meanwhile(Says):
    """Somebody writes the second caption while the captioner looks at the third."""

    def caption(self, pictures):
        if pictures[0].path.stem == "crab_01":
            (pictures[0].path.parent / "crab_01.txt").write_text("by hand, meanwhile")
        return super().caption(pictures)


@pytest.mark.parametrize("there", [None, "before"])
@pytest.mark.parametrize("order", ["as written", "by frequency"])
def test_what_somebody_writes_meanwhile_is_left_as_it_is(folder, there, order):
    if there:
        (folder / "crab_01.txt").write_text(there)
    says = Meanwhile(cat="a cat", cra="a crab", hot="a hot dog")
    captioned, report = fill(dataset(folder), says, "overwrite", TextWork(order=order))
    assert texts(folder) == {"cat-face": "a cat", "crab_01": "by hand, meanwhile", "hot-dog": "a hot dog"}
    assert [s.caption for s in captioned.samples][1] == "by hand, meanwhile"
    assert "somebody wrote these while the captioner worked" in report.describe(captioned)
    assert [path.name for path in report.written] == ["cat-face.txt", "hot-dog.txt"]


def test_a_linked_caption_is_kept_by_its_text(folder):
    (folder / "shared.text").write_text("by hand, shared")
    (folder / "crab_01.txt").symlink_to("shared.text")
    fill(dataset(folder), SAYS, "overwrite")
    assert originals(folder) == [b"by hand, shared"] and (folder / "shared.text").read_text() == "by hand, shared"
    assert texts(folder)["crab_01"] == "crab, solo"


def test_what_cannot_be_kept_is_not_overwritten(folder):
    (folder / "crab_01.txt").write_text("by hand")
    (folder / ".earlier-captions").write_text("a file in the way")
    with pytest.raises(AtelierError, match=r"crab_01\.txt: it was not overwritten"):
        fill(dataset(folder), SAYS, "overwrite")
    assert texts(folder)["crab_01"] == "by hand"


def test_a_picture_that_shares_a_caption_file_is_named(folder):
    Image.new("RGB", (8, 8)).save(folder / "cat-face.jpg")
    captioned, report = fill(dataset(folder), NAMES)
    assert "share a caption file with another one of their name, which alone was captioned: cat-face.png" in report.describe(
        captioned
    )


def test_alternatives_are_worked_on_line_by_line(folder):
    (folder / "crab_01.txt").write_text("a red crab\n\na blue_crab\n")
    fill(dataset(folder, caption_lines="alternatives"), ExistingCaptioner(), "overwrite", TextWork("ohwx", spaces=True))
    assert texts(folder)["crab_01"] == "ohwx, a red crab\nohwx, a blue crab"
    fill(dataset(folder, caption_lines="alternatives"), SAYS, "append", TextWork("ohwx", order="by frequency"))
    assert texts(folder)["crab_01"] == "ohwx, solo, crab, a red crab\nohwx, solo, crab, a blue crab"


def test_answers_that_are_cut_off_or_repeat_themselves_are_named(folder):
    says = Says(cat=CutShort("a cat that sits on the"), cra="a red crab " * 5, hot="a hot dog")
    captioned, report = fill(dataset(folder), says)
    text = report.describe(captioned)
    assert "max_length was reached: cat-face.png." in text and "repeats itself: crab_01.png." in text


def test_a_refusal_is_not_written_and_named(folder):
    says = Says(cat="I'm sorry, but I can't help with that.", cra="a red crab", hot="a hot dog")
    captioned, report = fill(dataset(folder), says)
    assert set(texts(folder)) == {"crab_01", "hot-dog"} and [path.name for path in report.empty] == ["cat-face.png"]
    assert "declined, and nothing was written: cat-face.png (I'm sorry, but I can't help with that.)" in report.describe(
        captioned
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", False), ("a a a a cat", True), ("a, solo, a, solo, a, solo, a, solo", True), ("no, no, no", False),
        ("哈哈哈哈", True), ("一只猫坐在红色的沙发上", False), ("", False),
    ],
)  # fmt: skip
def test_repetitions(text, expected):
    assert repeats(text) is expected


def test_the_disk_is_waited_for_once_whatever_the_number_of_captions(tmp_path, monkeypatch):
    for i in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"crab{i}.png")
    pictures, waits = dataset(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda *_: waits.append("fsync"))
    monkeypatch.setattr(os, "sync", lambda: waits.append("sync"))
    fill(pictures, NAMES)
    assert len(texts(tmp_path)) == 40 and waits == ["sync"]


class Looking:
    """Says which pixels it was shown."""

    looks = True

    def __init__(self):
        self.shown = {}

    def caption(self, pictures):
        self.shown |= {picture.path.name: np.asarray(picture.image) for picture in pictures}
        return [f"seen, {picture.path.stem}" for picture in pictures]


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "run.mkv", levels(70))
    write(folder / "walk.mp4", levels(12))
    first, *others = map(Image.fromarray, levels(10))
    first.save(folder / "wave.webp", save_all=True, append_images=others, duration=80, lossless=True)
    Image.new("RGB", (64, 48), "red").save(folder / "still.png")
    return folder


def of_films(folder):
    return dataset(folder, clip_frames="5, 1", clip_start="chunks", resolution=64, bucket_step=16)


def test_a_film_has_one_caption_from_its_middle_frame_however_many_clips_it_makes(films):
    captioner = Looking()
    captioned, report = fill(of_films(films), captioner, text=TextWork(order="by frequency"))
    assert texts(films) == {name: f"seen, {name}" for name in ("run", "walk", "wave", "still")}
    wanted = {"run.mkv": levels(70)[35], "walk.mp4": decoded(films / "walk.mp4")[6], "wave.webp": levels(10)[5]}
    assert all(np.array_equal(captioner.shown[name], frame) for name, frame in wanted.items())
    assert len(report.changes) == 4 and not report.notes and len(list(captioned.samples)) > 15
    assert all(sample.caption == f"seen, {sample.path.stem}" for sample in captioned.samples)
    told = {table.title: table for table in report.told(captioned).tables}
    assert len(told["captions"].rows) == 4 and dict(told["tags"].rows)["seen"] == "4"


def test_one_film_is_asked_for_its_caption_again_and_others_are_kept(films):
    (films / "walk.txt").write_text("someone walks", encoding="utf-8")
    captioner = Looking()
    _, report = fill(of_films(films), captioner, "overwrite", dry_run=True, only=["input/set/walk.mp4"])
    assert [(change.picture.name, change.after) for change in report.changes] == [("walk.mp4", "seen, walk")]
    assert [*captioner.shown] == ["walk.mp4"] and texts(films) == {"walk": "someone walks"}
    _, report = fill(of_films(films), captioner, "append", only=["walk.mp4"])
    assert texts(films) == {"walk": "someone walks, seen, walk"}


def test_a_film_that_has_changed_since_the_folder_was_read_is_looked_at_as_it_is_now(films):
    """As when its caption is asked for again while a run waits."""
    dataset = of_films(films)
    write(films / "run.mkv", levels(60, seed=3))
    captioner = Looking()
    fill(dataset, captioner, only=["run.mkv"])
    assert (captioner.shown["run.mkv"] == levels(60, seed=3)[30]).all()
