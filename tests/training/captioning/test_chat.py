"""Qwen-VL chat models through real files, real loading and real generation; the weights are small and random."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.tests.training.captioning import cancel, tiny_blip, tiny_chat
from lora_atelier.tests.training.captioning.described import CPU, described
from lora_atelier.training.captioning import load
from lora_atelier.training.captioning.chat import within
from lora_atelier.training.captioning.protocol import Picture
from lora_atelier.training.captioning.settings import GenerationSettings
from lora_atelier.training.errors import AtelierError
from PIL import Image

KINDS = tuple(tiny_chat.KINDS)


@pytest.fixture(scope="module")
def captioners(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioners")
    for kind in KINDS:
        tiny_chat.build_chat(folder / kind, kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_the_same_captions_as_one_by_one(captioners, pictures, kind):
    settings = {"beams": 2, "min_length": 4, "max_length": 7, "prompt": "What is this ?"}
    together = described(captioners, kind, pictures, **settings)
    assert together == [described(captioners, kind, [path], **settings)[0] for path in pictures]
    assert len(set(together)) > 1, "the pictures must matter"


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_the_answer_is_what_the_model_says_word_by_word_without_the_question(captioners, pictures, kind):
    """An own loop over the model's logits, from a question that is written out by hand: the picture becomes 2 x 2 tokens.

    The end of the answer is forbidden in both, so that there is something to compare whatever the weights say.
    """
    import transformers

    folder, name = captioners / kind, tiny_chat.KINDS[kind][0]
    model = getattr(transformers, f"{name}ForConditionalGeneration").from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    question = (
        "<|im_start|>user <|vision_start|>"
        + "<|image_pad|>" * 4
        + "<|vision_end|>What is this ?<|im_end|> <|im_start|>assistant "
    )
    ids = processor.tokenizer(question, return_tensors="pt")["input_ids"]
    seen = processor.image_processor(images=[Image.open(pictures[0])], return_tensors="pt")
    start = ids.shape[1]
    extra = processor(images=[Image.open(pictures[0])], text=["<|image_pad|>"], return_tensors="pt").keys()
    with torch.no_grad():
        while ids.shape[1] < start + 6:
            kinds = {"mm_token_type_ids": (ids == 5).int()} if "mm_token_type_ids" in extra else {}
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **seen, **kinds).logits
            logits[:, -1, processor.tokenizer.eos_token_id] = float("-inf")
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    expected = " ".join(processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True).split())
    settings = {"beams": 1, "min_length": 6, "max_length": 6, "prompt": "What is this ?"}
    assert described(captioners, kind, pictures[:1], **settings) == [expected]
    assert expected and "What is this ?" not in expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancel_ends_the_answer_within_a_token(captioners, pictures, kind):
    cancelled = cancel.After(3)
    captioner = load(kind, captioners, "", GenerationSettings(beams=2, min_length=20, max_length=30), CPU, check=cancelled)
    with cancel.counted(captioner.model) as steps, pytest.raises(KeyboardInterrupt):
        captioner.caption([Picture(path) for path in pictures])
    assert cancelled.asked == len(steps) == 3


def test_large_pictures_are_shrunk_in_proportion():
    assert within(Image.new("RGB", (100, 50)), 5000).size == (100, 50)
    assert within(Image.new("RGB", (4000, 1000)), 1_000_000).size == (2000, 500)
    assert within(Image.new("RGB", (100_000, 1)), 1000).size == (10_000, 1)


def test_a_picture_that_the_model_refuses_is_named(captioners, tmp_path):
    Image.new("RGB", (9000, 20)).save(tmp_path / "strip.png")
    with pytest.raises(AtelierError, match=r"strip\.png: the captioner cannot take this .*aspect ratio"):
        described(captioners, "qwen2_vl", [tmp_path / "strip.png"])


def test_a_missing_chat_template_is_named(tmp_path):
    folder = tiny_chat.build_chat(tmp_path / "mute")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(AtelierError, match=r"captioner: mute has no chat template"):
        load("mute", tmp_path, "", GenerationSettings(), CPU)


def test_pickled_weights_are_refused(tmp_path):
    tiny_blip.with_pickled_weights_only(tiny_chat.build_chat(tmp_path / "old"))
    with pytest.raises(AtelierError, match="captioner: old has no safetensors weights"):
        load("old", tmp_path, "", GenerationSettings(), CPU)
