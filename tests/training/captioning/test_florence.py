"""Florence-2 through real files, real loading and real generation; the weights are small and random."""

from __future__ import annotations

import json

import pytest
import torch
from lora_atelier.tests.training.captioning import cancel, tiny_blip, tiny_florence
from lora_atelier.training.captioning import load
from lora_atelier.training.captioning.protocol import Picture
from lora_atelier.training.captioning.settings import GenerationSettings
from lora_atelier.training.errors import AtelierError
from PIL import Image

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def captioners(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioners")
    tiny_florence.build_florence(folder / "florence")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    import numpy as np

    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def described(captioners, paths, **settings):
    captioner = load("florence", captioners, "", GenerationSettings(**settings), CPU)
    return captioner.caption([Picture(path) for path in paths])


def test_greedy_captions_are_what_the_model_says_word_by_word(captioners, pictures):
    """An own decoding loop on pixels normalised by hand, and on the question that the task stands for; nothing is scaled."""
    import numpy as np
    from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

    model = Florence2ForConditionalGeneration.from_pretrained(captioners / "florence").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(captioners / "florence")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    question = tokenizer("<image>" * 5 + "<s>What does the image describe?</s>", add_special_tokens=False, return_tensors="pt")
    expected = []
    for path in pictures:
        values = torch.from_numpy(np.asarray(Image.open(path)).copy()).float() / 255
        pixels = ((values - mean) / std).permute(2, 0, 1)[None]
        tokens = [2]
        with torch.no_grad():
            while len(tokens) < 8 and (len(tokens) == 1 or tokens[-1] != 2):
                answer = model(pixel_values=pixels, decoder_input_ids=torch.tensor([tokens]), **question)
                tokens.append(int(answer.logits[0, -1].argmax()))
        expected.append(" ".join(tokenizer.decode(tokens, skip_special_tokens=True).split()))
    assert described(captioners, pictures, prompt="<CAPTION>", beams=1, min_length=0, max_length=7) == expected
    assert len(set(expected)) > 1, "the pictures must matter"


def test_a_batch_gives_the_same_captions_as_one_by_one(captioners, pictures):
    """With beams and lengths, and with the task that an empty prompt stands for."""
    settings = {"beams": 3, "min_length": 4, "max_length": 6}
    together = described(captioners, pictures, **settings)
    assert together == [described(captioners, [path], **settings)[0] for path in pictures]
    assert together == described(captioners, pictures, prompt="<DETAILED_CAPTION>", **settings)


def test_a_cancel_ends_the_caption_within_a_token(captioners, pictures):
    cancelled = cancel.After(3)
    captioner = load("florence", captioners, "", GenerationSettings(beams=2, min_length=20, max_length=30), CPU, check=cancelled)
    with cancel.counted(captioner.model) as steps, pytest.raises(KeyboardInterrupt):
        captioner.caption([Picture(path) for path in pictures])
    assert cancelled.asked == len(steps) == 3


def test_a_prompt_that_it_cannot_answer_with_a_caption_is_named(captioners, pictures):
    with pytest.raises(AtelierError, match="prompt: <OD> finds places and writes no caption; use <CAPTION>"):
        described(captioners, pictures, prompt="<OD>")
    with pytest.raises(AtelierError, match=r"0\.png: the captioner cannot take this .*Check the prompt"):
        described(captioners, pictures[:1], prompt="<CAPTION> of a cat")


def test_the_form_with_program_code_is_refused_with_the_way_out(tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "florence2", "vision_config": {"model_type": "davit"}}))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(AtelierError, match="captioner: first is Florence-2 in the form that brings its own program code"):
        load("first", tmp_path, "", GenerationSettings(), CPU)


def test_pickled_weights_are_refused(tmp_path):
    tiny_blip.with_pickled_weights_only(tiny_florence.build_florence(tmp_path / "old"))
    with pytest.raises(AtelierError, match="captioner: old has no safetensors weights"):
        load("old", tmp_path, "", GenerationSettings(), CPU)


def test_a_transformers_that_does_not_know_the_kind_is_named(tmp_path, monkeypatch):
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tiny_florence.build_florence(tmp_path / "new")
    monkeypatch.setattr(transformers, "CONFIG_MAPPING", {kind: CONFIG_MAPPING[kind] for kind in ("blip", "blip-2")})
    with pytest.raises(AtelierError, match=r"the installed transformers \(.*\) does not know 'florence2' models, which new is"):
        load("new", tmp_path, "", GenerationSettings(), CPU)
