"""Starting points in the real canvas, in both renderers: chosen, taken back, offered, given to fresh nodes."""

from __future__ import annotations

from typing import Any

import pytest
from lora_atelier.tests.browser.driver import WORKFLOW, browser, drive, look, ours
from lora_atelier.tests.host import support


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def seen(request: pytest.FixtureRequest, comfyui: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    browser()
    other = support.CHECKPOINTS["sd15"]
    return drive(
        "starting_points", support.host("new"), tmp_path_factory.mktemp("shots"), workflow=WORKFLOW, other=other,
        **look(request.param),
    )  # fmt: skip


def test_one_choice_sets_all_nodes_and_says_what(seen: dict[str, Any]) -> None:
    chosen = seen["chosen"]
    assert (
        chosen["LoadDataset"]["resolution"] == 1024 == chosen["EpochWeightGrid"]["width"] == chosen["TrainLoRA"]["preview_width"]
    )
    assert (chosen["ConfigureLoRA"]["learning_rate"], chosen["ConfigureLoRA"]["highest_level"]) == (1e-4, 1.0)
    assert "SD 3.5 medium, person" in seen["said"] and "Load Dataset" in seen["said"] and "resolution 128 → 1024" in seen["said"]
    # What is the person's own stays.
    for kind, names in {
        "LoadDataset": ["folder"],
        "ConfigureLoRA": ["name", "seed", "comment"],
        "EpochWeightGrid": ["prompts"],
    }.items():
        assert [chosen[kind][name] for name in names] == [seen["before"][kind][name] for name in names]
    assert not seen["unset"]


def test_it_is_taken_back_in_one_step(seen: dict[str, Any]) -> None:
    assert seen["takenBack"] == seen["before"]


def test_another_checkpoint_offers_its_own(seen: dict[str, Any]) -> None:
    assert "Another model is loaded" in seen["offered"] and "SD 1.5" in seen["offered"]
    assert seen["taken"]["LoadDataset"]["resolution"] == 512 and seen["taken"]["EpochWeightGrid"]["cfg"] == 7
    assert seen["saved"]["model"] == "SD 1.5" and seen["saved"]["subject"] == "person"


def test_fresh_nodes_get_the_models_defaults_and_keep_what_was_typed(seen: dict[str, Any]) -> None:
    built = seen["built"]
    assert (built["EpochWeightGrid"]["steps"], built["EpochWeightGrid"]["sampler_name"]) == (25, "dpmpp_2m")
    assert built["EpochWeightGrid"]["cfg"] == 2.5 and built["TrainLoRA"]["preview_cfg"] == 7


def test_the_page_reports_no_error_of_ours(seen: dict[str, Any]) -> None:
    assert not ours(seen)
