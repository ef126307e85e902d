"""A training watched in the real canvas: its curve, its controls, and a page that is reloaded in between."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from lora_atelier.tests.browser.driver import WORKFLOW, browser, drive, look, ours
from lora_atelier.tests.host import support
from lora_atelier.training.grid.lettering import missing

# Far more steps than are trained before the test stops them.
LONG = {
    "preset": "own settings", "schedule": "constant", "warmup_steps": 0, "max_steps": 0, "epochs": 5000, "save_every": 0,
    "rank": 2, "learning_rate": 0.001, "precision": "auto", "gradient_checkpointing": False, "sample_every_steps": 25,
}  # fmt: skip


PROMPTS = "a fox\na boat"
LETTERS = "Füchse é ß, лиса, 狐狸, きつね"


def earlier_run(host: support.Host, name: str) -> str:
    """A finished run of 200 steps with a file, as it lies on the disk."""
    folder, loras = host.base / "output" / "lora-atelier" / name, host.loras / "lora-atelier" / name
    for place in (folder, loras):
        place.mkdir(parents=True)
    (loras / f"{name}.safetensors").write_bytes(b"x" * 5000)
    saved = [{"file": f"{name}.safetensors", "epoch": 4, "step": 200, "kind": "last"}]
    (folder / "run.json").write_text(json.dumps({"saved": saved, "total": 200, "steps_per_epoch": 50, "family": "SD3"}))
    rows = [{"step": s, "epoch": 1 + (s - 1) // 50, "loss": 0.4 + 0.6 / s, "rate": 1e-4} for s in range(1, 201)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def seen(request: pytest.FixtureRequest, comfyui: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw."""
    browser()
    host, shots = support.host("new"), tmp_path_factory.mktemp("shots")
    name = "watched-vue" if request.param else "watched-classic"
    widgets = {
        "LoadDataset": {"repeats": 1}, "ConfigureLoRA": {**LONG, "name": name},
        "TrainLoRA": {"preview_steps": 1, "preview_prompt": PROMPTS},
        "EpochWeightGrid": {"steps": 1, "prompts": LETTERS, "strengths": "1.0", "which_epochs": "all"}, "KSampler": {"steps": 1},
    }  # fmt: skip
    old = earlier_run(host, f"{name}-old")
    try:
        found = drive("watch_training", host, shots, workflow=WORKFLOW, widgets=widgets, old=old, **look(request.param))
    finally:
        host.server.interrupt()
    return found | {"name": name, "host": host}


def test_the_recipe_is_seen_before_it_is_queued(seen: dict[str, Any]) -> None:
    # Four pictures x 10 repeats at batch 8 in two buckets of two pictures: 3 + 3 steps, 8 epochs.
    assert "6 steps an epoch" in seen["outlook"]["text"] and seen["outlook"]["total"] == "48"
    assert "file about" in seen["outlook"]["text"] and "cosine: 2e-3" in seen["outlook"]["label"]
    assert "warmup: 10 steps, but the run has only 5" in seen["contradiction"]


def test_what_will_go_wrong_is_told_before_it_is_queued(seen: dict[str, Any]) -> None:
    """Rate 1 with AdamW, an epoch that the run does not have, 12,500 files."""
    told = seen["cautions"]
    assert [one for one in told if one.startswith("which_epochs: the run will save none of '20000'")]
    assert [one for one in told if one.startswith("learning rate: 1 is far too high for AdamW")]
    assert [one for one in told if one.startswith("save_every: 12,500 files would be saved")]
    assert seen["ofGrid"].startswith("which_epochs: the run will save none of '20000'"), "in the node where it is typed"
    assert seen["cautioned"].count("far too high") == 1, "each is said once"


def test_a_refusal_is_one_and_stands_at_its_widget(seen: dict[str, Any]) -> None:
    refused = {
        kind: [(error["extra_info"]["input_name"], error["details"]) for error in errors] for kind, errors in seen["refused"]
    }
    for kind, widget in (("ConfigureLoRA", "sweep"), ("EpochWeightGrid", "which_epochs")):
        [(place, details)] = refused[kind]
        assert place == widget and details.startswith(f"{widget}: ") and "soon" in details, refused


def test_the_preset_of_the_model_is_filled_in(seen: dict[str, Any]) -> None:
    assert "The model is of the family SD3" in seen["suited"]["note"]
    assert (seen["suited"]["rank"], seen["suited"]["precision"]) == (16, "bf16")
    assert not seen["unset"]


def test_the_chart_moves_and_outlives_a_reload(seen: dict[str, Any]) -> None:
    assert seen["first"]["run"] == seen["later"]["run"] == seen["reloaded"]["run"] == seen["name"]
    assert seen["first"]["step"] < seen["later"]["step"] <= seen["reloaded"]["step"]
    assert "steps/s" in seen["later"]["text"] and "left" in seen["later"]["text"] and "memory" in seen["later"]["text"]
    assert [label for _, label, _ in seen["reloaded"]["buttons"] if not label] == []


def test_everything_has_its_room(seen: dict[str, Any]) -> None:
    for part in ("later", "reloaded", "finished"):
        panel = seen[part]
        assert panel["chart"] >= 60 and panel["account"] == min(220, panel["told"]) and panel["hidden"] <= 1, (part, panel)


def test_the_run_tells_its_name_its_settings_and_what_it_expects(seen: dict[str, Any]) -> None:
    assert seen["later"]["state"] in (f"{seen['name']} · training", f"{seen['name']} · drawing samples")
    account = seen["account"]
    assert "10000 steps in 5000 epochs" in account and "kB a file" in account
    assert "needs about" in account and "time: about" in account
    assert "a guess from a timed pass" in account or "as fast as" in account
    for setting in ("rank: 2", "optimizer: AdamW", "learning_rate: 0.001", "sample_every_steps: 25"):
        assert setting in account, account


def test_the_end_names_the_file_and_no_time_is_left(seen: dict[str, Any]) -> None:
    text = seen["finished"]["text"]
    assert "Model saved, 2 files, the last:" in text and f"{seen['name']}/{seen['name']}.safetensors" in text
    assert "0:00 left" not in text


def test_stop_and_keep_goes_on_with_the_workflow(seen: dict[str, Any]) -> None:
    assert seen["ended"]["name"] == "execution_success", seen["ended"]
    assert seen["finished"]["state"].startswith(f"{seen['name']} · finished at step")
    assert seen["finished"]["samples"] >= 2
    assert all(disabled for _, _, disabled in seen["finished"]["buttons"])
    files = sorted(path.name for path in (seen["host"].loras / "lora-atelier" / seen["name"]).iterdir())
    assert files[-1] == f"{seen['name']}.safetensors" and "-step" in files[0]


def test_pictures_on_the_way_stay_in_their_node_and_cover_no_other(seen: dict[str, Any]) -> None:
    """Samples while the LoRA is trained, cells while the grid is drawn; the host would draw them over panels, yet does not."""
    for part, kind in (("trained", "TrainLoRA"), ("drawn", "EpochWeightGrid")):
        found = seen[part]
        assert found["count"].get(kind, 0) >= 3, (part, found)
        assert (found["outside"], found["host"], found["covered"]) == ([], [], []), (part, found)


def test_the_grid_draws_letters_of_other_languages(seen: dict[str, Any]) -> None:
    """The page is looked at as well; a letter that no font here has is a question mark, and said to be one."""
    lost = missing([LETTERS])
    assert "Hint:" in seen["told"] and not set(lost) & set("Füchse éßлиса"), lost
    assert f"Letters: no font on this computer has {' '.join(lost)};" in seen["told"] if lost else "Letters:" not in seen["told"]


def numbers(labels: list[str]) -> list[float]:
    return [float(label.replace("k", "e3")) for label in labels]


def test_the_axes_have_values(seen: dict[str, Any]) -> None:
    losses, rates, steps = map(numbers, seen["axes"])
    assert len(losses) >= 2 and losses == sorted(losses)
    assert 0 in rates and max(rates) <= 0.00106 and len(rates) >= 2, "the rate is 0.001 throughout"
    assert steps[0] == 0 and len(steps) >= 2 and steps == sorted(steps)
    log = numbers(seen["logAxes"][0])
    assert len(log) >= 2 and 0 not in log, "a log scale has no zero"


def test_what_is_under_the_pointer_is_told(seen: dict[str, Any]) -> None:
    step, epoch = map(int, re.match(r"step (\d+) · epoch (\d+)", seen["hovered"]).groups())  # type: ignore[union-attr]
    assert epoch == (step - 1) // 2 + 1, "two steps an epoch"
    assert re.search(r"loss [\d.]+, mean [\d.]+", seen["hovered"]) and "rate 1e-3" in seen["hovered"]
    first, second = (int(re.match(r"step (\d+)", one)[1]) for one in seen["walked"])  # type: ignore[index]
    assert second < first, "each press of an arrow key walks back"


def test_the_curve_is_smoothed_as_much_as_one_likes(seen: dict[str, Any]) -> None:
    def turns(points: str) -> int:
        heights = [float(point.split(",")[1]) for point in points.split()]
        return sum((b - a) * (c - b) < 0 for a, b, c in zip(heights, heights[1:], heights[2:], strict=False))

    assert turns(seen["curves"]["rough"]) > turns(seen["curves"]["usual"])
    assert re.match(r"smoothing 0(?![.\d])", seen["level"])
    assert seen["curves"]["log"] != seen["curves"]["rough"]
    assert re.match(r"smoothing 0(?![.\d])", seen["keptLevel"]), "it is kept"


def test_each_prompt_has_a_strip_that_begins_before_the_first_step(seen: dict[str, Any]) -> None:
    assert [title for title, _ in seen["strips"]] == PROMPTS.split("\n")
    (_, first), (_, second) = seen["strips"]
    assert first[0] == second[0] == "start" and first == second and len(first) >= 2


def test_runs_are_compared_downloaded_and_deleted(seen: dict[str, Any]) -> None:
    name, old = seen["name"], f"{seen['name']}-old"
    lines = {line.split()[0]: line for line in seen["lines"]}
    assert "finished" in lines[old] and "200 SD3 0.4" in lines[old] and "kB" in lines[old]
    assert "finished at step" in lines[name] and "SD3" in lines[name]
    assert f"{name}: " in seen["compared"] and f"{old}: 0.4" in seen["compared"]
    assert seen["path"] == str(seen["host"].loras / "lora-atelier" / name)
    assert seen["download"] == f"{name}.safetensors"
    assert seen["question"].startswith(f"Delete {old} with all its LoRA files") and seen["kept"] == 1
    assert old in seen["deleted"] and not (seen["host"].loras / "lora-atelier" / old).exists()
    assert not (seen["host"].base / "output" / "lora-atelier" / old).exists()


def test_the_page_reports_no_error_of_ours(seen: dict[str, Any]) -> None:
    assert not ours(seen)
