"""Captions by a connected text encoder, and room for captioners: the host's own classes, small."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.captioning import load
from lora_atelier.training.captioning.protocol import Picture
from lora_atelier.training.captioning.settings import GenerationSettings
from lora_atelier.training.errors import AtelierError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def seeing(comfyui):
    """A CLIP with a Qwen3-VL of width 64 and random weights, and the host's own tokenizer and chat template."""
    import comfy.sd
    from comfy.text_encoders import llama, qwen3vl

    small = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = dataclasses.make_dataclass(
        "TinyConfig", [(name, int, value) for name, value in small.items()], bases=(llama.Qwen3VL_4BConfig,)
    )
    qwen3vl.QWEN3VL_CONFIGS["tiny"] = config
    qwen3vl.QWEN3VL_VISION["tiny"] = {
        "hidden_size": 64, "intermediate_size": 64, "depth": 2, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip

    class TinyModel(qwen3vl.Qwen3VLTEModel):
        def __init__(self, **options):
            super().__init__(**options, model_type="tiny")

    target = SimpleNamespace(params={}, clip=TinyModel, tokenizer=qwen3vl.tokenizer(model_type="tiny"))
    with torch.inference_mode():
        clip = comfy.sd.CLIP(target, embedding_directory=None)
        stream = torch.Generator().manual_seed(0)
        for name, weight in clip.cond_stage_model.named_parameters():
            weight.data.normal_(0, 0.2, generator=stream)
            if "norm" in name:
                weight.data.fill_(1)
    yield clip
    del qwen3vl.QWEN3VL_CONFIGS["tiny"], qwen3vl.QWEN3VL_VISION["tiny"]


@pytest.fixture
def pictures(tmp_path):
    for i in range(2):
        noise_picture((64, 64 + 32 * i), 90, i).save(tmp_path / f"{i}.png")
    return [Picture(path) for path in sorted(tmp_path.iterdir())]


def test_the_connected_model_says_what_the_stock_node_lets_it_say(seeing, pictures, tmp_path):
    import numpy as np
    from comfy_extras.nodes_textgen import TextGenerate
    from lora_atelier.training import host

    settings = GenerationSettings(prompt="What is this?", min_length=0, max_length=6)
    captioner = load("connected clip", tmp_path, "", settings, CPU, writer=host.TextWriter(seeing))
    expected = []
    for picture in pictures:
        image = torch.from_numpy(np.asarray(picture.image, np.float32) / 255)[None]
        with torch.inference_mode():
            said = TextGenerate.execute(seeing, "What is this?", 6, {"sampling_mode": "off"}, image=image).result[0]
        expected.append(" ".join(said.split()))
    assert captioner.caption(pictures) == expected
    assert len(set(expected)) == 2, "the pictures must matter"


def test_a_question_is_plain_text(seeing, monkeypatch):
    """Brackets are words of the question, and a control word in it ends no turn."""
    from lora_atelier.training import host

    told = []
    monkeypatch.setattr(seeing, "generate", lambda tokens, **_: told.append(tokens) or [1])
    monkeypatch.setattr(seeing, "decode", lambda _: "an answer")
    writer, picture = host.TextWriter(seeing), torch.zeros(1, 64, 64, 3)
    for question in ("Is it (a cat:1.5)?", "Is it [a cat]?", "Is it <|im_end|> a cat?", "Is it a cat?"):
        writer.write(picture, question, 4)
    rows = [[token for rows in tokens.values() for row in rows for token in row] for tokens in told]
    ends = [sum(token[0] == 151645 for token in row if not isinstance(token[0], dict)) for row in rows]
    assert len(set(ends)) == 1 and all(token[1] == 1.0 for row in rows for token in row)
    assert all(len(row) > len(rows[-1]) for row in rows[:-1]), "nothing of the question was taken away"


def test_a_cancel_ends_the_answer_long_before_its_length(seeing, pictures, tmp_path):
    """The host moves its bar for every token and, in a server, looks for a cancel then; the bar passes on a few a second."""
    import comfy.model_management as management
    import comfy.utils
    from lora_atelier.training import host

    seen = []

    def bar(value, total, preview, **more):
        management.throw_exception_if_processing_interrupted()
        seen.append(value)
        management.interrupt_current_processing(True)

    settings = GenerationSettings(prompt="What is this?", min_length=0, max_length=400)
    captioner = load("connected clip", tmp_path, "", settings, CPU, writer=host.TextWriter(seeing))
    comfy.utils.set_progress_bar_global_hook(bar)
    try:
        with pytest.raises(management.InterruptProcessingException):
            captioner.caption(pictures)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        management.interrupt_current_processing(False)
    assert seen == [1]


def test_a_text_encoder_that_only_reads_is_named(tiny):
    from lora_atelier.training import host

    with pytest.raises(AtelierError, match=r"clip: .* only reads text. Connect a language model that sees pictures"):
        host.TextWriter(tiny("sd15").text.clip)


def test_a_host_whose_text_encoders_cannot_write_is_named(seeing, monkeypatch):
    import comfy.sd
    from lora_atelier.training import host

    monkeypatch.delattr(comfy.sd.CLIP, "generate")
    with pytest.raises(AtelierError, match=r"clip: this ComfyUI cannot let a text encoder write. Update ComfyUI"):
        host.TextWriter(seeing)


def test_a_language_model_without_eyes_is_named(seeing, pictures):
    from comfy.text_encoders.z_image import ZImageTokenizer
    from lora_atelier.training import host

    blind = seeing.clone()
    blind.tokenizer = ZImageTokenizer()
    with pytest.raises(AtelierError, match=r"clip: ZImageTokenizer takes no pictures. Connect a language model that sees"):
        host.TextWriter(blind).write(torch.zeros(1, 64, 64, 3), "What is this?", 4)


def test_room_is_made_through_the_hosts_own_memory_management(tiny):
    import comfy.model_management as management
    from lora_atelier.training import host

    patcher = tiny("sd15").model.patcher
    with torch.inference_mode():
        management.load_models_gpu([patcher])
        assert any(loaded.model is patcher for loaded in management.current_loaded_models)
        host.make_room(1, patcher.load_device)
        assert any(loaded.model is patcher for loaded in management.current_loaded_models), "there is room for a byte"
        host.make_room(1 << 60, patcher.load_device)
    assert not any(loaded.model is patcher for loaded in management.current_loaded_models)
