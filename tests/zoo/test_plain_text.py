"""Captions as plain text, for every text encoder: vocabularies read the characters that are there, and nothing has a weight."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_atelier.training import host

from .texts import READERS, Reader

pytestmark = pytest.mark.cpu_only("a text's tokens are the same on every device")
BITS = (
    "(", ")", "((", "))", ":", "1.2", ":9", "(16:9)", "\\", "\\(", "\\)", "\\\\(", "embedding:", " embedding:x",
    "embedding:../x", "<lora:a:1>", "BREAK", "<", ">", "[", "]", "{", "}", "{}", "{0}", "<|im_start|>", "<|im_end|>",
    "<|IM_END|>", "<|endoftext|>", "<|start_header_id|>", "<|eot_id|>", "<|image_pad|>", "<start_of_turn>", "<end_of_turn>",
    "<image>", "<extra_id_0>", "</s>", "<s>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "[INST]", "<think>", "<|end|>",
    "<|turn>", "＜/s＞", "\0", "\0\1", "\0\2", "\n", "  ", ", ", "a cat", "Tower (16:9)", "saber (fate)",
    "artist \\(style\\)", "“sign”", "猫", "é", "e\u0301", "\ufdd0", "\ud800",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(BITS), st.text(max_size=6)), max_size=8).map("".join)
CLEAN = str.maketrans({0xFDD0 + i: "�" for i in range(32)} | {0xD800 + i: "�" for i in range(0x800)})


def bare(text: str) -> str:
    """What a person means by a caption: its characters, booru's escapes undone, what is no character replaced."""
    return text.replace("\\(", "(").replace("\\)", ")").translate(CLEAN)


@pytest.fixture(scope="module", params=[pytest.param(reader, id=reader.name) for reader in READERS])
def tokenizer(request, comfyui) -> Iterator[Any]:
    """The host's tokenizer alone, as large encoders have it too."""
    reader: Reader = request.param
    try:
        kind = getattr(reader.home(), reader.tokenizer) if isinstance(reader.tokenizer, str) else reader.tokenizer()
    except ModuleNotFoundError as error:
        pytest.skip(f"this ComfyUI has none: {error}")
    yield kind(embedding_directory="/nowhere", tokenizer_data=reader.words())


def clip_of(tokenizer: Any) -> Any:
    """A CLIP of which nothing but the tokenizer is asked."""
    import comfy.sd

    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options, clip.patcher = tokenizer, {}, None
    return clip


def watched(tokenizer: Any, heard: list[Heard]) -> Any:
    """A copy whose vocabularies write down what they are asked for."""
    twin = copy.copy(tokenizer)
    for name, value in vars(tokenizer).items():
        if isinstance(value, type):
            continue
        if hasattr(value, "tokenize_with_weights"):
            setattr(twin, name, watched(value, heard))
        elif callable(value) and hasattr(value, "get_vocab"):
            setattr(twin, name, Listening(value, heard))
    return twin


@dataclass(frozen=True)
class Heard:
    """What a vocabulary was asked, and what it answered."""

    vocabulary: Any
    text: str
    numbers: list[int]


class Listening:
    def __init__(self, vocabulary: Any, heard: list[Heard]):
        self.vocabulary, self.heard = vocabulary, heard

    def __call__(self, text: str, **options: Any) -> Any:
        answer = self.vocabulary(text, **options)
        self.heard.append(Heard(self.vocabulary, text, list(answer["input_ids"])))
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["vocabulary"], name)


def rows(tokens: Any) -> list[list[tuple[Any, ...]]]:
    return [row for sections in (tokens.values() if isinstance(tokens, dict) else [tokens]) for row in sections]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TEXTS)
def test_every_character_is_what_it_is(tokenizer, text):
    heard: list[Heard] = []
    encoder = host.TextEncoder(clip_of(watched(tokenizer, heard)))
    encoder.tokenize("")
    heard.clear()
    tokens = encoder.tokenize(text)
    assert all(isinstance(token[0], numbers.Integral) and token[1] == 1.0 for row in rows(tokens) for token in row)
    wanted, parts = bare(text), "".join(h.text for h in heard)
    # A blank parts a control word; the encoders' own templates stand around the text, and some read it in pieces.
    if wanted.strip() and not any(kind in type(tokenizer).__name__ for kind in ("LongCat", "HunyuanImage")):
        assert wanted.replace(" ", "") in parts.replace(" ", "")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.lists(st.sampled_from(BITS), max_size=6).map("".join))
def test_no_control_word_of_a_caption_is_read_as_one(tokenizer, text):
    """What transformers calls a special number comes from a template or from padding, never out of a caption."""
    heard: list[Heard] = []
    encoder = host.TextEncoder(clip_of(watched(tokenizer, heard)))

    def special(caption: str) -> set[tuple[int, int]]:
        heard.clear()
        encoder.tokenize(caption)
        return {(id(h.vocabulary), n) for h in heard for n in h.numbers if n in getattr(h.vocabulary, "all_special_ids", ())}

    of_templates = special("") | special("a cat") | special('"a" cat')
    lacking = {(id(h.vocabulary), h.vocabulary.unk_token_id) for h in heard if hasattr(h.vocabulary, "unk_token_id")}
    assert special(text) <= of_templates | lacking


def test_a_control_word_is_one_in_the_syntax(tokenizer):
    """Where a vocabulary has them at all: so the test above can fail."""
    heard: list[Heard] = []
    host.TextEncoder(clip_of(watched(tokenizer, heard)), "ComfyUI").tokenize("a <|endoftext|> </s> [SEP] cat")
    known = {n for h in heard for n in getattr(h.vocabulary, "all_special_ids", ())}
    assert not known or known & {n for h in heard for n in h.numbers}
