"""BLIP and BLIP-2 through real files, real loading and real generation; the weights are small and random."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.tests.training.captioning import cancel, tiny_blip
from lora_atelier.training.captioning import load
from lora_atelier.training.captioning.pretrained import as_captions
from lora_atelier.training.captioning.protocol import CutShort, Picture
from lora_atelier.training.captioning.settings import GenerationSettings
from lora_atelier.training.errors import AtelierError
from PIL import Image

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def captioners(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioners")
    tiny_blip.build_blip(folder / "blip")
    tiny_blip.build_blip2(folder / "blip-2")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(("red", "white", "green", "black")):
        noise_picture((40 + i, 32), 20 * i, i).save(folder / f"{colour}.png")
    return sorted(folder.iterdir())


def described(captioners, name, paths, **settings):
    captioner = load(name, captioners, "", GenerationSettings(**settings), CPU)
    return captioner.caption([Picture(path) for path in paths])


def test_greedy_captions_are_what_the_model_says_word_by_word(captioners, tmp_path):
    """An own decoding loop over the model's logits, on pixels that were normalised by hand; no picture needs scaling."""
    import numpy as np
    from transformers import BertTokenizerFast, BlipForConditionalGeneration

    model = BlipForConditionalGeneration.from_pretrained(captioners / "blip").eval()
    tokenizer = BertTokenizerFast.from_pretrained(captioners / "blip")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pictures, expected = [tmp_path / f"{i}.png" for i in range(6)], []
    for i, path in enumerate(pictures):
        values = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(values).save(path)
        pixels = ((torch.from_numpy(values).float() / 255 - mean) / std).permute(2, 0, 1)[None]
        tokens = [5]
        with torch.no_grad():
            seen = model.vision_model(pixel_values=pixels)[0]
            while len(tokens) < 7 and tokens[-1] != 3:
                logits = model.text_decoder(input_ids=torch.tensor([tokens]), encoder_hidden_states=seen).logits
                tokens.append(int(logits[0, -1].argmax()))
        expected.append(" ".join(tokenizer.decode(tokens, skip_special_tokens=True).split()))
    assert described(captioners, "blip", pictures, beams=1, min_length=0, max_length=6) == expected
    assert len(set(expected)) > 1, "the pictures must matter"


def test_blip2_says_what_its_parts_say_word_by_word(captioners, tmp_path):
    """Vision tower, query transformer, projection and language model one after another, by an own decoding loop."""
    import numpy as np
    from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerFast

    model = Blip2ForConditionalGeneration.from_pretrained(captioners / "blip-2").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(captioners / "blip-2")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    asked = tokenizer("a photo of", return_tensors="pt")["input_ids"]
    pictures, expected = [tmp_path / f"{i}.png" for i in range(4)], []
    for i, path in enumerate(pictures):
        values = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(values).save(path)
        pixels = ((torch.from_numpy(values).float() / 255 - mean) / std).permute(2, 0, 1)[None]
        tokens: list[int] = []
        with torch.no_grad():
            seen = model.vision_model(pixel_values=pixels)[0]
            queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen)[0]
            words = model.get_input_embeddings()(asked)
            so_far = torch.cat([model.language_projection(queries), words], 1)
            while len(tokens) < 6 and tokens[-1:] != [2]:
                tokens.append(int(model.language_model(inputs_embeds=so_far).logits[0, -1].argmax()))
                so_far = torch.cat([so_far, model.get_input_embeddings()(torch.tensor([tokens[-1:]]))], 1)
        expected.append(" ".join(tokenizer.decode([*asked[0].tolist(), *tokens], skip_special_tokens=True).split()))
    assert described(captioners, "blip-2", pictures, prompt="a photo of", beams=1, min_length=0, max_length=6) == expected
    assert len(set(expected)) > 1, "the pictures must matter"


@pytest.mark.parametrize("name", ["blip", "blip-2"])
def test_a_cancel_ends_the_caption_within_a_token(captioners, pictures, name):
    cancelled = cancel.After(3)
    captioner = load(name, captioners, "", GenerationSettings(beams=3, min_length=20, max_length=30), CPU, check=cancelled)
    writes = captioner.model.text_decoder if name == "blip" else captioner.model.language_model
    with cancel.counted(writes) as steps, pytest.raises(KeyboardInterrupt):
        captioner.caption([Picture(path) for path in pictures])
    assert cancelled.asked == len(steps) == 3


@pytest.mark.parametrize("name", ["blip", "blip-2"])
def test_a_batch_gives_the_same_captions_as_one_by_one(captioners, pictures, name):
    together = described(captioners, name, pictures, beams=3, min_length=4, max_length=9)
    assert together == [described(captioners, name, [path], beams=3, min_length=4, max_length=9)[0] for path in pictures]


@pytest.mark.parametrize("name", ["blip", "blip-2"])
def test_the_answer_begins_with_the_prompt(captioners, pictures, name):
    for caption in described(captioners, name, pictures, prompt="a photo of", beams=2, max_length=6):
        assert caption.startswith("a photo of")


def test_lengths_are_kept(captioners, pictures):
    captioner = load("blip", captioners, "", GenerationSettings(beams=1, min_length=20, max_length=20), CPU)
    made = []
    generate = captioner.model.generate
    captioner.model.generate = lambda **kwargs: made.append(generate(**kwargs)) or made[-1]
    captioner.caption([Picture(path) for path in pictures])
    # One token starts the text; none of the 20 that follow may end it.
    assert made[0].shape == (4, 21) and not (made[0] == 3).any()


def test_pickled_weights_are_refused(tmp_path):
    tiny_blip.with_pickled_weights_only(tiny_blip.build_blip(tmp_path / "old"))
    with pytest.raises(AtelierError, match=r"captioner: old has no safetensors weights"):
        load("old", tmp_path, "", GenerationSettings(), CPU)


@pytest.mark.parametrize("build", [tiny_blip.build_blip, tiny_blip.build_blip2])
def test_a_folder_without_any_weights_is_named(tmp_path, build):
    (build(tmp_path / "bare") / "model.safetensors").unlink()
    with pytest.raises(AtelierError, match=r"captioner: bare has no safetensors weights.*put the model's \.safetensors"):
        load("bare", tmp_path, "", GenerationSettings(), CPU)


def test_a_picture_that_has_gone_is_named(captioners, tmp_path):
    with pytest.raises(AtelierError, match=r"gone\.png: this picture cannot be read"):
        described(captioners, "blip", [tmp_path / "gone.png"])


def test_another_kind_of_model_is_refused(tmp_path):
    tiny_blip.of_another_kind(tmp_path / "bert")
    with pytest.raises(
        AtelierError, match=r"captioner: bert is a 'bert' model, which writes no text about pictures\. Take one such as"
    ):
        load("bert", tmp_path, "", GenerationSettings(), CPU)


@pytest.mark.parametrize("damage", ["weights", "tokenizer"])
def test_a_damaged_download_is_named(tmp_path, damage):
    folder = tiny_blip.build_blip(tmp_path / "half")
    if damage == "weights":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    else:
        for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "processor_config.json"):
            (folder / name).unlink(missing_ok=True)
    with pytest.raises(AtelierError, match="captioner: half cannot be loaded"):
        load("half", tmp_path, "", GenerationSettings(), CPU)


def test_a_broken_picture_is_named(captioners, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(AtelierError, match=r"bad\.png: this picture cannot be read"):
        described(captioners, "blip", [tmp_path / "bad.png"])


def test_transformers_is_not_imported_before_a_model_is_loaded(root):
    code = (
        "import sys, types; p = types.ModuleType('lora_atelier'); p.__path__ = [sys.argv[1]]; sys.modules['lora_atelier'] = p\n"
        "from lora_atelier.training.captioning import blip, file_name, fill\n"
        "assert 'transformers' not in sys.modules, 'imported too early'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, env={**os.environ, "PYTHONPATH": ""})


def test_an_answer_that_ends_with_a_word_was_cut_short(captioners):
    """BLIP's end is [SEP], and what ends earlier than others is filled up with [PAD]."""
    processor = load("blip", captioners, "", GenerationSettings(), CPU).processor
    tokenizer = processor.tokenizer
    rows = [["a", "cat", "[SEP]", "[PAD]"], ["a", "red", "cat", "[SEP]"], ["a", "red", "cat", "with"]]
    said = as_captions(processor, torch.tensor([tokenizer.convert_tokens_to_ids(row) for row in rows]))
    assert said == ["a cat", "a red cat", "a red cat with"]
    assert [isinstance(text, CutShort) for text in said] == [False, False, True]


def test_a_limit_that_is_reached_is_told(captioners, pictures):
    """As many tokens as at least, at most: no answer can end by itself."""
    said = described(captioners, "blip", pictures, beams=1, min_length=6, max_length=6, prompt="a photo of")
    cut = [isinstance(text, CutShort) for text in said]
    assert any(cut), said
    assert not any(isinstance(text, CutShort) and not text for text in said)
