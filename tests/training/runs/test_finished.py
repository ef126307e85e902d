"""What a finished run leaves: the state or not, the picture beside its files, and what these say of themselves."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.tests.training.test_job import (  # noqa: F401
    NO_PREVIEW,
    Stop,
    dataset,
    fresh_folders,
    go,
    interrupt,
    only_training_checks,
    recipe,
)
from lora_atelier.training import host
from lora_atelier.training.config import LengthConfig, OptimizerConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs import preview, reader
from lora_atelier.training.runs.card import Card, common_front
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

STEADY = OptimizerConfig(learning_rate=1e-2, schedule="constant")
DRAWN = dataclasses.replace(NO_PREVIEW, steps=1, prompt="picture 0\npicture 1", width=64, height=48)


def states(name: str = "tiny") -> list[str]:
    return sorted(path.name for path in (host.runs_folder() / name / "state").glob("*"))


def account(name: str = "tiny") -> dict[str, list[str]]:
    found: dict[str, list[str]] = reader.state(name, host.runs_folder())["account"]
    return found


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_the_state_goes_once_the_last_file_is_whole(tiny, dataset):  # noqa: F811
    t, config = tiny("sd3"), recipe(optimizer=STEADY, length=LengthConfig(epochs=2))
    trained = go(t, dataset, config, keep_state=False)
    assert states() == [] and trained.epochs.files[-1].path.is_file() and len(trained.losses) == 6
    assert any("was deleted after its last file was found whole" in note for note in account()["notes"])
    again = go(t, dataset, config, keep_state=False)
    assert again.losses == trained.losses and all((again.tensors[k] == trained.tensors[k]).all() for k in again.tensors)
    longer = dataclasses.replace(config, length=LengthConfig(epochs=3))
    for when in ("continue", "continue with the changes"):
        with pytest.raises(AtelierError, match=r"tiny ended at step 6, and what it needs to go on was not kept \(keep_state"):
            go(t, dataset, longer, when=when)
    begun = go(t, dataset, longer, when="start over")
    assert begun.epochs.name == "tiny-2" and begun.epochs.files[-1].step == 9
    assert [saved.path for saved in again.epochs.files if not saved.path.is_file()] == [], "nothing of the old one is touched"


def test_a_run_whose_state_is_kept_can_be_made_longer(tiny, dataset):  # noqa: F811
    t, config = tiny("sd3"), recipe(optimizer=STEADY, length=LengthConfig(epochs=2))
    go(t, dataset, config, keep_state=True)
    assert "state.safetensors" in states()
    longer = dataclasses.replace(config, length=LengthConfig(epochs=3))
    assert go(t, dataset, longer, keep_state=False).epochs.name == "tiny"
    assert states() == []


def test_a_finished_run_that_is_only_handed_on_keeps_what_it_has(tiny, dataset):  # noqa: F811
    t, config = tiny("sd3"), recipe(length=LengthConfig(epochs=1))
    go(t, dataset, config, keep_state=True)
    before = states()
    go(t, dataset, config, keep_state=False)
    assert states() == before != []


def test_a_run_that_is_cancelled_keeps_its_state(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    t, config = tiny("sd3"), recipe(length=LengthConfig(epochs=2))
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 5, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, dataset, config, keep_state=False)
    assert "state.safetensors" in states()
    assert len(go(t, dataset, config, keep_state=False).losses) == 6 and states() == []


def test_a_file_that_does_not_hold_what_was_written_costs_no_state(tiny, dataset, monkeypatch):  # noqa: F811
    from lora_atelier.training.runs.run import Run

    real = Run.save_lora

    def torn(self, *given, **named):
        saved = real(self, *given, **named)
        data = bytearray(saved.path.read_bytes())
        data[-1] ^= 1
        saved.path.write_bytes(data)
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_lora", torn)
        go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=1)), keep_state=False)
    assert "state.safetensors" in states()
    assert any("does not hold what was written" in one for one in account()["warnings"])


def test_a_state_that_cannot_be_deleted_fails_no_training(tiny, dataset, monkeypatch):  # noqa: F811
    real = Path.unlink

    def held(path, *given, **named):
        if path.name == "state.safetensors":
            raise PermissionError(13, "in use", str(path))
        real(path, *given, **named)

    monkeypatch.setattr(Path, "unlink", held)
    trained = go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=1)), keep_state=False)
    assert trained.epochs.files[-1].path.is_file() and "state.safetensors" in states()
    assert any("could not be deleted" in one and "Delete it in Runs" in one for one in account()["warnings"])
    assert not reader.state("tiny", host.runs_folder())["failed"]


def test_last_samples_that_were_cancelled_are_drawn_when_it_is_queued_again(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    from lora_atelier.training.job.saver import Saver

    t, config, real = tiny("sd3"), recipe(length=LengthConfig(epochs=2)), Saver.sample

    def cancelled(self, epoch, step):
        if step == 6:
            raise interrupt
        real(self, epoch, step)

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "sample", cancelled)
        with pytest.raises(type(interrupt)):
            go(t, dataset, config, DRAWN, keep_state=False)
    place = host.runs_folder() / "tiny" / "samples" / "tiny-000002.png"
    assert "state.safetensors" in states() and not place.exists()
    files = sorted(path.name for path in (host.loras_folder() / "tiny").glob("*.safetensors"))
    said: list[str] = []
    trained = go(t, dataset, config, DRAWN, keep_state=False, show=said.append)
    assert said[1] == "tiny: goes on after step 6 of 6, since what belongs to its end was not done"
    assert place.exists() and states() == [] and len(trained.losses) == 6
    assert sorted(path.name for path in (host.loras_folder() / "tiny").glob("*.safetensors")) == files


def test_a_last_file_that_is_damaged_or_gone_starts_no_training_unasked(tiny, dataset):  # noqa: F811
    t, config = tiny("sd3"), recipe(length=LengthConfig(epochs=1))
    path = go(t, dataset, config, keep_state=False).epochs.files[-1].path
    sound, losses = path.read_bytes(), (host.runs_folder() / "tiny" / "history.jsonl").read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    for told in (r"tiny\.safetensors in .* does not hold what was written", r"tiny\.safetensors is gone from"):
        with pytest.raises(AtelierError, match=f"{told}.*'start over'"):
            go(t, dataset, config, keep_state=False)
        assert (host.runs_folder() / "tiny" / "history.jsonl").read_bytes() == losses
    path.write_bytes(sound)
    assert go(t, dataset, config, keep_state=False).epochs.name == "tiny"


# Pictures and cards


def test_every_saved_file_has_its_picture_beside_it_and_within(tiny, dataset):  # noqa: F811
    t, config = tiny("sd3"), recipe(length=LengthConfig(epochs=3, keep_last=1))
    plain = go(t, dataset, dataclasses.replace(config, name="plain"))
    trained = go(t, dataset, config, DRAWN, thumbnail=32)
    files = [saved.path for saved in trained.epochs.files]
    assert sorted(path.name for path in files[0].parent.glob("*.png")) == [f"{path.stem}.png" for path in sorted(files)], (
        "none is left of files that were not kept"
    )
    for saved, bare in zip(trained.epochs.files, plain.epochs.files, strict=True):
        sample = host.runs_folder() / "tiny" / "samples" / f"tiny-{saved.epoch:06d}.png"
        assert preview.preview_of(saved.path).read_bytes() == sample.read_bytes()
        stated = metadata(saved.path)
        head, data = stated["modelspec.thumbnail"].split(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as small, Image.open(sample) as large:
            assert small.format == "JPEG" and small.size == (32, 24)
            same = np.asarray(large.convert("RGB").resize((32, 24), Image.Resampling.BICUBIC), dtype=int)
            assert np.abs(np.asarray(small, dtype=int) - same).mean() < 40
        alone, known = load_file(bare.path), load_file(saved.path)
        assert alone.keys() == known.keys() and all((alone[k] == known[k]).all() for k in alone)
        kept = metadata(bare.path)
        assert {k: v for k, v in stated.items() if k in kept and "hash" in k} == {k: v for k, v in kept.items() if "hash" in k}


def test_a_picture_that_a_person_has_put_there_stays(tiny, dataset):  # noqa: F811
    loras = host.loras_folder() / "tiny"
    loras.mkdir(parents=True)
    mine, other = loras / "tiny-000001.png", loras / "tiny-000002.preview.webp"
    noise_picture((8, 8), 40).save(mine)
    noise_picture((8, 8), 40).save(other)
    before = mine.read_bytes(), other.read_bytes()
    go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=3)), DRAWN)
    assert (mine.read_bytes(), other.read_bytes()) == before
    assert not (loras / "tiny-000002.png").exists() and (loras / "tiny.png").exists()


def test_the_host_finds_the_picture(tiny, dataset):  # noqa: F811
    from app.model_manager import ModelFileManager

    trained = go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=1)), DRAWN)
    path = trained.epochs.files[-1].path
    assert ModelFileManager().get_model_previews(str(path))[0] == str(path.with_suffix(".png"))


def test_the_files_say_what_the_person_says_of_them(tiny, dataset):  # noqa: F811
    card = Card.read("title: Ink and lore\ntrigger: inkish\ntags: ink，style\nauthor: Ada\nlicense: CC0\ndescription: One.\nTwo.")
    trained = go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=1)), card=card)
    found = {k: v for k, v in metadata(trained.epochs.files[-1].path).items() if k.startswith("modelspec.")}
    expected = {
        "title": "Ink and lore", "trigger_phrase": "inkish", "tags": "ink, style", "author": "Ada", "license": "CC0",
        "description": "One.\nTwo.",
    }  # fmt: skip
    assert {name: found[f"modelspec.{name}"] for name in expected} == expected and "modelspec.usage_hint" not in found
    assert "about would have counted" in _opening(tiny, dataset, dataclasses.replace(card, author="Bo"))


def _opening(tiny, dataset, card: Card) -> str:  # noqa: F811
    go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=1)), card=card)
    return str(reader.state("tiny", host.runs_folder())["opening"])


def test_what_every_caption_begins_with_is_called_the_trigger(tiny, dataset):  # noqa: F811
    t, config = tiny("sd3"), recipe(length=LengthConfig(epochs=1))
    plain = go(t, dataset, config)
    assert "modelspec.trigger_phrase" not in metadata(plain.epochs.files[-1].path)
    for sample in dataset.subsets[0].samples:
        text = sample.path.with_suffix(".txt")
        text.write_text(f"ohwx, {text.read_text()}")
    trained = go(t, dataset, config, when="start over")
    assert metadata(trained.epochs.files[-1].path)["modelspec.trigger_phrase"] == "ohwx"
    assert any("Every caption begins with 'ohwx'" in note for note in account("tiny-2")["notes"]), "a guess is told"
    named = go(t, dataset, config, when="start over", card=Card(trigger="mine"))
    assert metadata(named.epochs.files[-1].path)["modelspec.trigger_phrase"] == "mine"
    assert not any("begins with" in note for note in account("tiny-3")["notes"])
    none = go(t, dataset, config, when="start over", card=Card.read("title: Ink\ntrigger:"))
    assert "modelspec.trigger_phrase" not in metadata(none.epochs.files[-1].path), "there is none, says the person"
    assert not any("begins with" in note for note in account("tiny-4")["notes"])
    assert metadata(none.epochs.files[-1].path)["ss_output_name"] == "tiny-4", "as the file is called"
    assert common_front(["a, b", "a, c", "a"]) == "a" and common_front(["a, b", "b, a", "a"]) == common_front([]) == ""
    assert common_front(["1girl, b", "1girl, c"]) == "", "two say little"


def test_a_colon_as_it_is_typed_in_chinese_is_one():
    card = Card.read("title：水墨: 一\n说明：第二行\nTags ： 墨，画\nauthor: 阿达：甲")
    assert (card.title, card.tags, card.author) == ("水墨: 一\n说明：第二行", "墨, 画", "阿达：甲") and card.trigger is None
    assert Card.read("trigger：").trigger == ""
    with pytest.raises(AtelierError, match="says nothing known"):
        Card.read("说明：一")


@pytest.mark.parametrize("side", [64, 512, 2048])
def test_a_picture_within_a_file_is_never_large(side):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1400, 2048, 3), dtype=np.uint8))
    url = preview.thumbnail(picture, side)
    assert len(url) <= preview.THUMBNAIL_BYTES
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as small:
        assert small.format == "JPEG" and max(small.size) <= side and abs(small.width / small.height - 2048 / 1400) < 0.05
        assert side > 64 or max(small.size) == 64


def test_the_last_file_has_a_picture_also_where_samples_are_drawn_seldom(tiny, dataset):  # noqa: F811
    trained = go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=3, sample_every=2)), DRAWN)
    assert preview.preview_of(trained.epochs.files[-1].path).exists()


def test_samples_of_an_earlier_beginning_are_not_shown_among_those_of_the_run(tiny, dataset):  # noqa: F811
    t, config = tiny("sd3"), recipe(length=LengthConfig(epochs=1))
    go(t, dataset, config, DRAWN, keep_state=False)
    folder = host.runs_folder() / "tiny" / "samples"
    for name in ("tiny-000009.png", "tiny-step00000500-2.png", "mine.png", "tiny-000009 (best).png"):
        noise_picture((8, 8), 40).save(folder / name)
    for path in (host.loras_folder() / "tiny").iterdir():
        path.unlink()
    (host.runs_folder() / "tiny" / "run.json").unlink()
    go(t, dataset, config, DRAWN, keep_state=False)
    assert sorted(path.name for path in folder.iterdir()) == [
        "mine.png", "tiny-000000-2.png", "tiny-000000.png", "tiny-000001-2.png", "tiny-000001.png", "tiny-000009 (best).png"
    ]  # fmt: skip
    first, again = reader.samples(folder.parent)[0], folder / "tiny-000000.png"
    os.utime(again, ns=(10**18, 10**18))
    assert first["stamp"] != next(row["stamp"] for row in reader.samples(folder.parent) if row["file"] == again.name) == 10**12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a fox", "'a fox' says nothing known"), ("artist: Ada", "Begin a line with title, trigger"),
        ("author: Ada\nAuthor: Bo", "'author' is given twice"), (f"title: {'x' * 2001}", "title has 2001 characters"),
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_read_is_refused_in_a_sentence(text, said):
    with pytest.raises(AtelierError, match=r"^about: ") as refused:
        Card.read(text)
    assert said in str(refused.value)


@given(st.fixed_dictionaries({}, optional={
    name: st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=40)
    for name in ("title", "trigger", "author", "license")
}))  # fmt: skip
def test_a_card_is_read_as_it_was_written(values):
    card = Card.read("\n".join(f" {name.title()} : {value} " for name, value in values.items()))
    assert {k: v for k, v in dataclasses.asdict(card).items() if v} == values
