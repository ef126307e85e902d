"""The pause between captioning and training: who waits, what ends it, and what is trained after it."""

from __future__ import annotations

import threading
import time

import pytest
from lora_atelier.training.captioning.editing import Edit, listed, write
from lora_atelier.training.captioning.file_name import FileNameCaptioner
from lora_atelier.training.captioning.fill import fill, workload
from lora_atelier.training.captioning.review import again, go_on, hold, reviewed, waiting
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.index import file_digest
from lora_atelier.training.dataset.put_aside import remove
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, scan
from lora_atelier.training.dataset.turning import turn
from lora_atelier.training.errors import AtelierError
from PIL import Image

CONFIG = SubsetConfig("input/set", masks="files")


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (90, 60), (80 * number, 0, 0)).save(tmp_path / f"{name}.png")
    Image.new("L", (90, 60), 255).save(tmp_path / "b.mask.png")
    return tmp_path


def read(folder):
    return fill(Dataset(scan(folder, CONFIG)), FileNameCaptioner("{name}"))[0]


def edit(folder, picture, caption):
    one = next(one for one in listed(folder, CONFIG) if one.picture == picture)
    write(folder, [Edit(picture, caption, one.version)], CONFIG)


def test_a_node_waits_until_it_is_told_to_go_on():
    told = []
    held = threading.Thread(target=hold, args=("7", {"node": "7"}, lambda: told.append(len(waiting())), lambda: None, str.upper))
    held.start()
    while not told:
        time.sleep(0.01)
    assert waiting() == [{"node": "7"}] and not go_on("8") and held.is_alive()
    assert go_on("7")
    held.join(10)
    assert not held.is_alive() and waiting() == [] and told == [1, 0] and not go_on("7")


def test_a_cancel_ends_the_wait():
    class Cancelled(Exception):
        pass

    def check():
        raise Cancelled

    with pytest.raises(Cancelled):
        hold("7", {"node": "7"}, lambda: None, check, str.upper)
    assert waiting() == []


def test_a_node_that_waits_is_asked_for_captions_and_a_refusal_is_for_who_asked():
    def answer(picture):
        if picture == "bad.png":
            raise AtelierError("no words")
        return picture.upper()

    held = threading.Thread(target=hold, args=("7", {}, lambda: None, lambda: None, answer))
    held.start()
    while not waiting():
        time.sleep(0.01)
    assert again("7", "a.png").result(10) == "A.PNG"
    with pytest.raises(AtelierError, match="no words"):
        again("7", "bad.png").result(10)
    assert again("7", "b.png").result(10) == "B.PNG" and held.is_alive()
    go_on("7")
    held.join(10)
    with pytest.raises(AtelierError, match="doesn't wait any more"):
        again("7", "a.png")


def test_a_cancel_while_a_caption_is_asked_leaves_nobody_without_an_answer():
    class Cancelled(Exception):
        pass

    asked = []

    def answer(_):
        asked.append(again("7", "late.png"))  # which comes when it is too late
        raise Cancelled

    def begin():
        if not asked:
            asked.append(again("7", "a.png"))

    with pytest.raises(Cancelled):
        hold("7", {}, begin, lambda: None, answer)
    for one, why in zip(asked, ("was cancelled", "doesn't wait any more"), strict=True):
        with pytest.raises(AtelierError, match=why):
            one.result(10)


def test_captions_that_were_edited_meanwhile_are_those_that_are_trained(folder):
    dataset = read(folder)
    before = folder_stamp(folder)
    after, notes = reviewed(dataset, lambda: edit(folder, "a.png", "by hand"))
    assert [sample.caption for sample in after.samples] == ["by hand", "b", "c"] and notes == ()
    assert after.fingerprint != dataset.fingerprint
    assert folder_stamp(folder) == before, "the next run would train everything again"
    edit(folder, "b.png", "later")
    assert folder_stamp(folder) != before


def test_nothing_done_is_nothing_changed(folder):
    dataset = read(folder)
    assert reviewed(dataset, lambda: None) == (dataset, ())


def test_pictures_that_were_turned_or_taken_out_meanwhile_are_trained_as_they_are_then(folder):
    def work():
        turn(folder, ["b.png"], 1, CONFIG, folder)
        remove(folder, ["c.png"], CONFIG, folder)

    after, notes = reviewed(read(folder), work)
    assert [(s.path.name, s.width, s.height, s.key) for s in after.samples] == [
        ("a.png", 90, 60, file_digest(folder / "a.png")), ("b.png", 60, 90, file_digest(folder / "b.png")),
    ]  # fmt: skip
    assert list(after.samples)[1].mask_key == file_digest(folder / "b.mask.png")
    assert notes == (
        "taken out meanwhile, and not trained on: c.png.",
        "changed meanwhile, and trained on as they are now: b.png.",
    )
    assert after.fingerprint == read(folder).fingerprint, "what a fresh look at the folder finds"


def test_without_any_picture_there_is_nothing_to_go_on_with(folder):
    with pytest.raises(AtelierError, match="all of its pictures"):
        reviewed(read(folder), lambda: remove(folder, ["a.png", "b.png", "c.png"], CONFIG, folder) and None)


def test_only_the_pictures_that_are_meant_are_captioned_and_all_are_handed_on(folder):
    dataset = Dataset(scan(folder, CONFIG))
    after, report = fill(dataset, FileNameCaptioner("{name}"), only=["b.png"])
    assert [change.picture.name for change in report.changes] == ["b.png"]
    assert [sample.caption for sample in after.samples] == [None, "b", None]
    assert [task.picture.name for task in workload(dataset, "overwrite", only=[f"{folder.name}/a.png", "c.png"]).work] == [
        "a.png", "c.png",
    ]  # fmt: skip
    for wrong in ("d.png", ".png", "/", "b.pn"):
        with pytest.raises(AtelierError, match="only: "):
            workload(dataset, "overwrite", only=[wrong])


def test_a_whole_name_means_one_picture_although_other_folders_have_one_of_the_name(tmp_path):
    def subsets(root, name, nested=False):
        where = tmp_path / root / name
        for path in (where / "1.png", *([where / "cats" / "1.png"] if nested else [])):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), "red").save(path)
        return scan(where, SubsetConfig(f"{root}/{name}", nested=nested))

    dataset = Dataset((*subsets("input", "cats", nested=True), *subsets("datasets", "cats"), *subsets("input", "5_cats")))

    def meant(name):
        return [task.picture.relative_to(tmp_path).as_posix() for task in workload(dataset, "overwrite", only=[name]).work]

    for name in ("input/cats/1.png", "input/cats/cats/1.png", "datasets/cats/1.png", "input/5_cats/1.png"):
        assert meant(name) == [name]
    assert len(meant("1.png")) == 4
