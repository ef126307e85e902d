"""Workflow files of either format as prompts, and values that are set from a command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo import prompt
from lora_atelier.demo.workflow import WorkflowError

INFO: dict[str, Any] = {
    "TrainLoRA": {"input": {"required": {
        "model": ["MODEL", {}], "preview_steps": ["INT", {"default": 20}], "preview_cfg": ["FLOAT", {"default": 4.0}],
        "preview_prompt": ["STRING", {}], "preview_sampler": [["euler", "heun"], {}],
    }}},
    "AutoCaption": {"input": {"required": {"pause": ["BOOLEAN", {"default": False}]}}},
}  # fmt: skip


def graph(**more: Any) -> dict[str, Any]:
    inputs = {"model": ["1", 0], "preview_steps": ["9", 0], "preview_cfg": 4.0, "preview_prompt": "", "preview_sampler": "euler"}
    train = {"class_type": "TrainLoRA", "inputs": inputs, "_meta": {"title": "My training, v1.5"}}
    return {"7": train, "8": {"class_type": "AutoCaption", "inputs": {"pause": False}}, **more}


@pytest.mark.parametrize(("text", "found"), [
    ("TrainLoRA.preview_steps=4", ("TrainLoRA", "preview_steps", "4")),
    ("7.preview_prompt=a = b. c", ("7", "preview_prompt", "a = b. c")),
    ("My training, v1.5.preview_cfg=2", ("My training, v1.5", "preview_cfg", "2")),
    ("TrainLoRA.preview_prompt=", ("TrainLoRA", "preview_prompt", "")),
])  # fmt: skip
def test_a_setting_is_taken_apart(text: str, found: tuple[str, str, str]) -> None:
    assert prompt.setting_of(text) == found


@pytest.mark.parametrize("text", ["TrainLoRA.preview_steps", "preview_steps=4", ".x=1", "TrainLoRA.=1", ""])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(WorkflowError, match=r"write Node\.widget=value"):
        prompt.setting_of(text)


@pytest.mark.parametrize(("node", "widget", "text", "value"), [
    ("TrainLoRA", "preview_steps", "4", 4), ("7", "preview_cfg", "1e1", 10.0), ("My training, v1.5", "preview_prompt", "1", "1"),
    ("TrainLoRA", "preview_sampler", "heun", "heun"), ("AutoCaption", "pause", "Yes", True), ("8", "pause", "off", False),
])  # fmt: skip
def test_a_value_has_its_widgets_type(node: str, widget: str, text: str, value: object) -> None:
    given = graph()
    before = json.dumps(given)
    changed = prompt.assigned(given, INFO, [(node, widget, text)])
    (found,) = [one["inputs"][widget] for one in changed.values() if widget in one["inputs"]]
    assert found == value and type(found) is type(value)
    assert json.dumps(given) == before


@pytest.mark.parametrize(("setting", "said"), [
    (("TrainLoRA", "preview_steps", "four"), "holds a whole number"), (("TrainLoRA", "preview_cfg", "x"), "holds a number"),
    (("AutoCaption", "pause", "maybe"), "holds true or false"), (("TrainLoRA", "preview_step", "1"), "Near to it: preview_steps"),
    (("TrainLoRA", "model", "x"), "no such widget"), (("Nobody", "rank", "1"), "it has AutoCaption, TrainLoRA"),
])  # fmt: skip
def test_what_cannot_be_set_is_said(setting: tuple[str, str, str], said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        prompt.assigned(graph(), INFO, [setting])


def test_what_is_run_ends_with_trainings_and_grids() -> None:
    given = graph(**{"9": {"class_type": "EpochWeightGrid", "inputs": {}}, "10": {"class_type": "SaveImage", "inputs": {}}})
    assert prompt.targets(given, everything=False) == ["7", "9"]
    assert prompt.targets(given, everything=True) is None


def test_nothing_to_train_and_nobody_to_read_are_refused() -> None:
    with pytest.raises(WorkflowError, match="has no Train LoRA"):
        prompt.targets({"8": {"class_type": "AutoCaption", "inputs": {}}}, everything=False)
    with pytest.raises(WorkflowError, match=r"--set AutoCaption\.pause=false"):
        prompt.targets(prompt.assigned(graph(), INFO, [("AutoCaption", "pause", "true")]), everything=False)


def chained(**more: Any) -> dict[str, Any]:
    data = {"class_type": "LoadDataset", "inputs": {"folder": "a"}}
    captions = {"class_type": "AutoCaption", "inputs": {"dataset": ["1", 0], "pause": False}}
    drawn = {"class_type": "RenderRegularisation", "inputs": {"dataset": ["2", 0]}}
    train = {"class_type": "TrainLoRA", "inputs": {"dataset": ["3", 0]}}
    grid = {"class_type": "EpochWeightGrid", "inputs": {"epochs": ["4", 0]}}
    return {"1": data, "2": captions, "3": drawn, "4": train, "5": grid, **more}


def test_who_takes_part_trains_and_writes_nothing() -> None:
    given = chained()
    found, ends = prompt.followed(given, ["4", "5"])
    assert ends == ["4"] and found["4"]["inputs"]["dataset"] == ["1", 0]
    assert given["4"]["inputs"]["dataset"] == ["3", 0]


def test_several_trainings_have_each_what_they_need() -> None:
    given = chained(**{"6": {"class_type": "TrainLoRA", "inputs": {"dataset": ["2", 0]}}})
    found, ends = prompt.followed(given, ["4", "5", "6"])
    assert ends == ["4", "6"] and found["4"]["inputs"]["dataset"] == found["6"]["inputs"]["dataset"] == ["1", 0]


@pytest.mark.parametrize(("more", "said"), [
    ({"6": {"class_type": "TrainLoRA", "inputs": {"dataset": ["1", 0], "model": ["4", 1]}}}, r"\(node 4\) has learnt goes into"),
    ({"1": {"class_type": "LoadDataset", "inputs": {"folder": ["3", 1]}}}, "RenderRegularisation hands on more"),
    ({"3": {"class_type": "RenderRegularisation", "inputs": {}}}, "more than its dataset"),
])  # fmt: skip
def test_what_several_processes_cannot_do_is_said(more: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        prompt.followed(chained(**more), None)


def test_files_of_every_form_are_read(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    for content, found in ((graph(), graph()), ({"prompt": graph(), "client_id": "x"}, graph()), ({"nodes": []}, {"nodes": []})):
        file.write_text(json.dumps(content), encoding="utf-8")
        assert prompt.read(file) == found


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": 1}', '{"prompt": {}}', "[" * 100_000, '{"1": {"class_type": "A"}}'])
def test_what_is_no_workflow_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "some.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(WorkflowError, match=r"some\.json is no"):
        prompt.read(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"gone\.json cannot be read"):
        prompt.read(tmp_path / "gone.json")


def test_a_node_that_the_server_lacks_is_named() -> None:
    with pytest.raises(WorkflowError, match="SaveImage: is the pack"):
        prompt.prompt_of({"1": {"class_type": "SaveImage", "inputs": {}}}, INFO)
