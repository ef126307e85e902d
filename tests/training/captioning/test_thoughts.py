"""Thoughts and refusals in what a model says."""

from __future__ import annotations

import pytest
from lora_atelier.training.captioning.protocol import CutShort
from lora_atelier.training.captioning.thoughts import begins_a_thought, declines, still_thinking, without_thoughts


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("a cat\non a mat", "a cat on a mat"),
        ("<think>\nIs it a cat?\n</think>\n\nA cat.", "A cat."),
        ("<think></think>A cat.", "A cat."),
        ("◁think▷a cat◁/think▷A cat.", "A cat."),
        ("<think>what</think><answer>A cat.</answer>", "A cat."),
        ("<|begin_of_box|>A cat.<|end_of_box|>", "A cat."),
        ("<think>It could be a", ""),
        ("a sign that says think", "a sign that says think"),
    ],
)
def test_only_the_answer_stays(said, answer):
    assert without_thoughts(said) == answer


def test_what_was_cut_short_stays_so():
    assert isinstance(without_thoughts(CutShort("<think>a</think> a cat on")), CutShort)
    assert not isinstance(without_thoughts("a cat"), CutShort)


def test_an_endless_thought_is_seen():
    assert still_thinking("<think>it is") and not still_thinking("<think>it is</think> a cat")
    assert begins_a_thought("assistant\n<think>\n") and not begins_a_thought("assistant\n<think></think>\n")


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot assist with this request.",
        "Sorry, I can't describe people in this image.",
        "I cannot provide a description of this image.",
        "I'm unable to describe this picture.",
        "I apologize, but I am not able to caption it.",
        "As an AI language model, I do not see pictures.",
    ],
)
def test_a_refusal_is_no_caption(said):
    assert declines(said)


@pytest.mark.parametrize(
    "said",
    [
        "a sign that says sorry, we are closed", "I love NY shirt, red hat", "Sorry! board game on a table", "a can of soup",
        "I can't believe it's not butter, packaging",
    ],
)  # fmt: skip
def test_a_caption_is_no_refusal(said):
    assert not declines(said)
