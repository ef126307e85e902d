"""The parts of a caption: commas within brackets hold together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import words
from lora_atelier.training.dataset.augment import caption_variants


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a, b ,, c", ["a", "b", "c"]),
        ("saber (fate, stay night), 1girl", ["saber (fate, stay night)", "1girl"]),
        ("name \\(series, 2nd\\), hat", ["name \\(series, 2nd\\)", "hat"]),
        ("(red, wet:1.2), ((a, b), c), d", ["(red, wet:1.2)", "((a, b), c)", "d"]),
        ("(never closed, a, b", ["(never closed", "a", "b"]),
        ("closed) first, a (b, c)", ["closed) first", "a (b, c)"]),
        ("sky, :(, grass, :), ;)", ["sky", ":(", "grass", ":)", ";)"]),
        (":), (a, b), :(", [":)", "(a, b)", ":("]),
        (" , ,", []),
    ],
)
def test_parts(text, parts):
    assert words.parts(text) == parts


@given(st.text(alphabet="ab,() :\\", max_size=30))
def test_nothing_is_lost_and_pairs_stay_together(text):
    parts = words.parts(text)
    assert "".join("".join(parts).split()).replace(",", "") == "".join(text.split()).replace(",", "")
    if not any(mouth in text for mouth in (":(", ":)")) and text.count("(") == text.count(")"):
        depths = [sum({"(": 1, ")": -1}.get(c, 0) for c in text[:i]) for i in range(len(text) + 1)]
        if min(depths) >= 0:
            assert all(part.count("(") == part.count(")") for part in parts)


def test_shuffling_keeps_weights_whole():
    config = SubsetConfig("a", shuffle_captions=True, tag_dropout=0.2)
    found = caption_variants("ohwx, (red, wet:1.2), name \\(series, 2nd\\), hat", config, 1, "k", 16)
    assert len(found) > 5
    for caption in found:
        assert caption.count("(red, wet:1.2)") == caption.count("red") and caption.count("\\(series, 2nd\\)") == caption.count(
            "2nd"
        )
