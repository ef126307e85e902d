"""Whole training jobs whose numbers or texts are not what they should be: said, never stored."""

from __future__ import annotations

import dataclasses
import re

import pytest
from lora_atelier.training import host, step
from lora_atelier.training.config import LengthConfig, TextConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.evaluation import validation

from .test_job import NO_PREVIEW, dataset, fresh_folders, go, recipe  # noqa: F401


def test_numbers_that_are_none_at_the_first_step_are_not_put_down_to_the_learning_rate(tiny, dataset, monkeypatch):  # noqa: F811
    real = step.losses.batch_loss
    monkeypatch.setattr(step.losses, "batch_loss", lambda *given: real(*given) * float("nan"))
    with pytest.raises(
        AtelierError, match=r"step 1, before anything was learnt, so the learning rate is not the cause.*precision"
    ):
        go(tiny("sd3"), dataset, recipe())


@pytest.mark.parametrize(("broken", "wire"), [("decode", "vae: .*--fp32-vae"), ("sample", "model: .*learning rate is too high")])
def test_a_preview_that_is_no_picture_is_said_once_and_not_saved(tiny, dataset, monkeypatch, tmp_path, broken, wire):  # noqa: F811
    t, said = tiny("sd3"), []
    owner = host.PictureCodec if broken == "decode" else host.Model
    real = getattr(owner, broken)
    monkeypatch.setattr(owner, broken, lambda self, *given, **named: real(self, *given, **named) * float("nan"))
    trained = go(t, dataset, recipe(), dataclasses.replace(NO_PREVIEW, prompt="a\nb", steps=1), show=said.append)
    assert [f.path.is_file() for f in trained.epochs.files] == [True] * 3, "the run is none the worse"
    assert list(tmp_path.rglob("*.png")) == []
    lost = [line for line in said if "no picture was saved" in line]
    assert len(lost) == 1 and re.search(wire, lost[0]) and lost[0].startswith("preview at step 0")


def test_a_text_encoder_without_numbers_is_named_before_anything_is_trained(tiny, dataset, monkeypatch, tmp_path):  # noqa: F811
    t = tiny("sd3")
    real = type(t.text.clip).encode_from_tokens_scheduled

    def lost(clip, tokens):
        return [[cond * float("nan"), extras] for cond, extras in real(clip, tokens)]

    monkeypatch.setattr(type(t.text.clip), "encode_from_tokens_scheduled", lost)
    with pytest.raises(AtelierError, match="clip: it gives NaN or infinite numbers for the prompt 'a prompt'"):
        go(t, dataset, recipe(), dataclasses.replace(NO_PREVIEW, prompt="a prompt", steps=1))
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_fixed_losses_that_are_none_are_said_and_not_written(tiny, dataset, monkeypatch):  # noqa: F811
    t, said = tiny("sd3"), []
    found = validation.Validation(1, None, float("nan"))
    monkeypatch.setattr("lora_atelier.training.loop.validate", lambda *_: found)
    go(t, dataset, recipe(length=LengthConfig(epochs=1, when_enough="say")), show=said.append)
    assert any("the fixed loss is NaN or infinite" in line for line in said)
    assert not (host.runs_folder() / "tiny" / "measured.jsonl").exists()


def test_captions_and_previews_are_plain_text_unless_the_recipe_says_otherwise(tiny, dataset, monkeypatch):  # noqa: F811
    t, read = tiny("sd3"), []
    real = type(t.text.clip).encode_from_tokens

    def encode(clip, tokens, *given, **named):
        read.append({token[1] for rows in tokens.values() for row in rows for token in row})
        return real(clip, tokens, *given, **named)

    monkeypatch.setattr(type(t.text.clip), "encode_from_tokens", encode)
    sample = dataset.subsets[0].samples[0]
    path = sample.path.with_suffix(".txt")
    before = path.read_text(encoding="utf-8")
    path.write_text("a (tower:16.5) of its own", encoding="utf-8")
    try:
        for syntax, weights in (("plain", {1.0}), ("ComfyUI", {1.0, 16.5, 9.0})):
            read.clear()
            preview = dataclasses.replace(NO_PREVIEW, prompt="a (cat:9)", steps=1)
            go(t, dataset, recipe(syntax, length=LengthConfig(epochs=1), text=TextConfig(syntax=syntax)), preview)
            assert set().union(*read) == weights
    finally:
        path.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("field", ["prompt", "negative"])
def test_a_preview_prompt_that_is_no_text_names_its_widget(field):
    with pytest.raises(AtelierError, match=f"preview_{field}: it was given NoneType and no text"):
        dataclasses.replace(NO_PREVIEW, **{field: None})


def test_the_syntax_makes_another_run_only_of_captions_that_it_reads_otherwise(tiny, dataset):  # noqa: F811
    t, once = tiny("sd3"), LengthConfig(epochs=1)
    go(t, dataset, recipe("same", length=once))
    assert go(t, dataset, recipe("same", length=once, text=TextConfig(syntax="ComfyUI"))).epochs.name == "same"
    sample = dataset.subsets[0].samples[0]
    path = sample.path.with_suffix(".txt")
    before = path.read_text(encoding="utf-8")
    path.write_text("a tower (16:9)", encoding="utf-8")
    try:
        go(t, dataset, recipe("other", length=once))
        assert go(t, dataset, recipe("other", length=once, text=TextConfig(syntax="ComfyUI"))).epochs.name == "other-2"
    finally:
        path.write_text(before, encoding="utf-8")
