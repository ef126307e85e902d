"""Runs that wait for a person belong to the workflow that they came from; a question that leaves the queue is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.canvas.pretended import seen_by


@pytest.fixture(scope="module")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen_by("waiting.mjs", root, tmp_path_factory.mktemp("page"))


def test_a_node_of_the_same_number_in_another_workflow_does_not_wait(seen: dict[str, Any]) -> None:
    assert seen["here"] == [2, None, None, 2, None]
    assert seen["paused"] == "a cat" and seen["asked"] == [{"node": "2", "picture": "input/cats/sub/1.png"}]


def test_a_question_ends_however_it_leaves_the_queue(seen: dict[str, Any]) -> None:
    assert seen["answered"] == "a dog" and seen["missed"] == "a bird" and seen["deleted"] == "! leftQueue"
    assert seen["listeners"] == 0 and seen["prompts"] == ["input/cats/sub/1.png"] * 3
