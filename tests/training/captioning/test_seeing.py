"""Picture-to-text models of many kinds through real files, real loading and real generation; the weights are small and random."""

from __future__ import annotations

import json

import pytest
import torch
from lora_atelier.tests.training.captioning import cancel, tiny_seeing
from lora_atelier.tests.training.captioning.described import CPU, described
from lora_atelier.training.captioning import load
from lora_atelier.training.captioning.protocol import Picture
from lora_atelier.training.captioning.settings import GenerationSettings
from lora_atelier.training.errors import AtelierError

CHAT = ("joy", "llava-next", "llava-onevision", "idefics3", "gemma3")
BEGINS = ("git", "vit-gpt2")
"""Kinds whose caption begins with the prompt."""


@pytest.fixture(scope="module")
def captioners(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioners")
    for kind in tiny_seeing.KINDS:
        tiny_seeing.build(folder / kind, kind)
    return folder


def documented(folder, kind, path, question, length):
    """What ``transformers`` says by its own documented example, without any of the code under test."""
    import transformers
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    how = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "num_beams": 1}
    if kind == "vit-gpt2":
        model = transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval()
        pixels = transformers.ViTImageProcessor.from_pretrained(folder)(images=[picture], return_tensors="pt").pixel_values
        words = transformers.AutoTokenizer.from_pretrained(folder)
        begin = (
            {"decoder_input_ids": words(question, add_special_tokens=False, return_tensors="pt").input_ids} if question else {}
        )
        return words.batch_decode(model.generate(pixels, **begin, **how), skip_special_tokens=True)[0]
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    if kind == "git":
        inputs = processor(images=picture, return_tensors="pt")
        if question:
            words = processor(text=question, add_special_tokens=False).input_ids
            inputs["input_ids"] = torch.tensor([[processor.tokenizer.cls_token_id, *words]])
        return processor.batch_decode(model.generate(**inputs, **how), skip_special_tokens=True)[0]
    if kind in ("llava", "paligemma"):
        text = f"USER: <image>\n{question} ASSISTANT:" if kind == "llava" else question
        inputs = processor(images=picture, text=text, return_tensors="pt")
    else:
        content = question if kind == "joy" else [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        if kind == "joy":
            messages = [{"role": "system", "content": "You are a helpful image captioner."}, *messages]
            text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            inputs = processor(text=[text], images=[picture], return_tensors="pt", add_special_tokens=False)
        else:
            inputs = processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
    tokens = model.generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(tokens, skip_special_tokens=True)[0]


@pytest.mark.parametrize("kind", tiny_seeing.KINDS)
def test_the_answer_is_that_of_the_documented_example(captioners, pictures, kind):
    question = "a photo of" if kind in BEGINS else "caption en" if kind == "paligemma" else "What is this ?"
    expected = [" ".join(documented(captioners / kind, kind, path, question, 7).split()) for path in pictures]
    said = described(captioners, kind, pictures, prompt=question, beams=1, min_length=7, max_length=7)
    assert said == expected
    assert len(set(said)) > 1 and all(said), "the pictures must matter"
    assert all(text.startswith(question) for text in said) if kind in BEGINS else not any(question in text for text in said)


@pytest.mark.parametrize("kind", tiny_seeing.KINDS)
def test_a_batch_gives_the_same_captions_as_one_by_one(captioners, pictures, kind):
    settings = {"beams": 2, "min_length": 4, "max_length": 7}
    together = described(captioners, kind, pictures, **settings)
    assert together == [described(captioners, kind, [path], **settings)[0] for path in pictures]
    assert len(set(together)) > 1


@pytest.mark.parametrize("kind", tiny_seeing.KINDS)
def test_a_cancel_ends_the_answer_within_a_token(captioners, pictures, kind):
    cancelled = cancel.After(3)
    captioner = load(kind, captioners, "", GenerationSettings(beams=2, min_length=20, max_length=30), CPU, check=cancelled)
    with pytest.raises(KeyboardInterrupt):
        captioner.caption([Picture(path) for path in pictures])
    assert cancelled.asked == 3


def test_a_thought_is_left_out_of_the_caption(captioners, pictures, monkeypatch):
    """The words are put into the model's mouth: only what is done to them is asked here."""
    captioner = load("llava", captioners, "", GenerationSettings(), CPU)
    said = "<think> a cat ?\nno </think>\n\na red  dog"
    monkeypatch.setattr(type(captioner.processor), "batch_decode", lambda *_, **__: [said, "a cat", "<think> a dog on"])
    assert captioner.caption([Picture(path) for path in pictures]) == ["a red dog", "a cat", ""]
    assert "still thinking when max_length was reached" in captioner.silence


def without_template(folder, kind):
    tiny_seeing.build(folder, kind)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_chat_model_without_its_template_is_named(tmp_path):
    without_template(tmp_path / "mute", "idefics3")
    with pytest.raises(AtelierError, match=r"captioner: mute has no chat template\. Put the model's chat_template\.jinja"):
        load("mute", tmp_path, "", GenerationSettings(), CPU)


def test_a_template_that_shows_no_picture_is_named(tmp_path, pictures):
    folder = tiny_seeing.build(tmp_path / "blind", "gemma3")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}")
    with pytest.raises(AtelierError, match="captioner: blind's chat template cannot ask about a picture"):
        load("blind", tmp_path, "", GenerationSettings(), CPU).caption([Picture(pictures[0])])


def test_a_template_beside_the_tokenizer_is_found(captioners, tmp_path, pictures):
    """Some authors publish it in the tokenizer's file."""
    folder = without_template(tmp_path / "llava-next", "llava-next")
    path = folder / "tokenizer_config.json"
    template = tiny_seeing.PARTS.replace("MARK", "<image>")
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    settings = {"prompt": "What is this ?", "beams": 1, "min_length": 6, "max_length": 6}
    assert described(tmp_path, "llava-next", pictures, **settings) == described(captioners, "llava-next", pictures, **settings)


@pytest.mark.parametrize("kind", ["unheard_of", "internvl_chat"])
def test_program_code_beside_the_weights_is_refused(tmp_path, kind):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": {"AutoModel": "modeling.Own"}}))
    (folder / "modeling.py").write_text("raise SystemExit('this was run')")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(AtelierError, match="captioner: own brings its own program code, which is never run here"):
        load("own", tmp_path, "", GenerationSettings(), CPU)


@pytest.mark.parametrize("part", ["preprocessor", "tokenizer"])
def test_a_folder_without_a_part_is_named(tmp_path, part):
    folder = tiny_seeing.build(tmp_path / "half", "vit-gpt2")
    for path in folder.glob(f"{part}*"):
        path.unlink()
    with pytest.raises(AtelierError, match=r"captioner: half cannot be loaded .*config, tokenizer, preprocessor and safetensors"):
        load("half", tmp_path, "", GenerationSettings(), CPU)
