"""What the panels ask and where they tell the answers, on a page that is only pretended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.canvas.pretended import seen_by


@pytest.fixture(scope="module")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen_by("panels.mjs", root, tmp_path_factory.mktemp("page"))


def test_a_grid_is_told_its_own_warnings(seen):
    assert seen["first"] == ["none of 30", ""]


def test_an_answer_is_for_the_grids_that_were_asked_about(seen):
    assert seen["meanwhile"] == ["none of 31", "none of 40"]
    assert seen["questions"] == [["30", "40"], ["31", "40"], ["40"]]


def test_a_warning_goes_with_what_it_was_about(seen):
    """The grid is bypassed, unplugged, or its recipe is removed."""
    assert seen["bypassed"] == ["", "none of 40"]
    assert seen["swapped"] == ["none of 40", ""]
    assert seen["removed"] == ["", ""]


def test_what_a_node_said_is_there_again_with_its_tab(seen):
    assert (seen["fresh"], seen["restored"], seen["loaded"]) == ("", "4 pictures", "5 pictures")


def test_what_a_panel_would_cover_goes_down(seen):
    """The grown node ends at 400: what lies below begins, with its title of 30, 20 further down, and what is below that too."""
    assert seen["placed"] == [450, 600, 250, 0] == seen["twice"]
    assert seen["around"] == [610, 50], "the group holds what was in it"
    assert seen["fixed"] == 300, "what is pinned stays"


def test_what_a_job_was_at_goes_with_it(seen):
    assert seen["at"] == [["reading", ""]] * 3


def test_what_is_kept_is_of_the_same_settings_and_folders(seen):
    """Every graph that is made from a template has the template's name, and its nodes the same places."""
    assert seen["kept"] == ["3 captions", "", "", "3 captions"]


def test_where_the_browser_has_no_room_the_oldest_goes(seen):
    assert seen["full"] == ["", "9 pictures"]


def test_a_question_about_one_picture_is_no_news_of_the_node(seen):
    """Neither before the queue has said which job it is nor after; other jobs are."""
    assert seen["news"] == [False, False, True, "a cat"]


def test_the_wheel_is_the_canvass_until_something_scrolls(seen):
    assert (seen["short"], seen["long"]) == (1, 1)


def test_a_chart_whose_storage_is_of_no_use_is_as_usual(seen):
    assert seen["charts"] == [[5, False]] * 4 + [[0, True], [5, False]]
