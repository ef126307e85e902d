"""The window "Pictures and captions" and its list of tags, on a page that is only pretended."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.canvas.pretended import seen_by
from lora_atelier.training.dataset import words

CAPTIONS = [
    "1girl, solo", "猫，白い、犬", "قطة، كلب", "name (series, 2nd), red", "(red, wet:1.2), b", ":), :(, a", ":(a, b:), c",
    "a (b, c", "a) b, c (d, e) f", "((a, b), c), d", r"saber \(fate, stay\), x", " , ,, ", "",
]  # fmt: skip
MANY = 400


def captions() -> list[str]:
    """Those above, and many that are made of what matters, by lot but always the same."""
    lots = random.Random(7)
    return CAPTIONS + ["".join(lots.choices("ab (),，、､،:;=8\\", k=lots.randrange(1, 24))) for _ in range(MANY)]


@pytest.fixture(scope="module")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen_by("caption_tags.mjs", root, tmp_path_factory.mktemp("page"), captions())


def test_the_page_parts_captions_as_the_training_does(seen: dict[str, Any]) -> None:
    assert seen["parts"] == [words.parts(caption) for caption in captions()]
    assert seen["lines"] == ["a", "b", "c"]


def test_what_is_half_typed_takes_nothing_back(seen: dict[str, Any]) -> None:
    """On its way from one change to the next the caption was as it had been before the first."""
    assert seen["undone"] == ["cat, red, one", "cat, red"] and seen["nothing"]


def test_the_list_of_tags_waits_until_a_caption_is_typed(seen: dict[str, Any]) -> None:
    assert seen["typing"] == ["cat (2)", "one (1)", "red (1)"] and seen["typed"] == ["cat (2)", "red (1)", "two (1)"]


def test_a_chosen_tag_can_be_released_when_no_caption_has_it(seen: dict[str, Any]) -> None:
    assert seen["chosen"] == [["cat (2)", "red (1)!"], True]
    assert seen["without"] == [["red (0)!", "cat (2)"], True], "the keyboard stays at the tag"
    assert seen["released"] == ["cat (2)"]


def test_what_is_not_saved_is_asked_about_as_often_as_a_window_would_close(seen: dict[str, Any]) -> None:
    assert seen["escaped"] == [False, False, 2, True], "the browser is kept from closing it"
    assert seen["reopened"] == [3, True]
    assert seen["closed"] == [4, False, True, True], "then Escape is nobody's"
