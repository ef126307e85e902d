"""The canvas's files become prompts; the node descriptions below are excerpts of real ``/object_info`` answers."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from lora_atelier.demo.workflow import WorkflowError, named_values, restored, to_prompt, to_text

SEED = {"default": 0, "min": 0, "max": 18446744073709551615, "control_after_generate": True}
OBJECT_INFO: dict[str, Any] = {
    "CheckpointLoaderSimple": {
        "input": {"required": {"ckpt_name": [["a.safetensors", "b.safetensors"], {"tooltip": "The checkpoint."}]}},
        "display_name": "Load Checkpoint",
    },
    "CLIPTextEncode": {
        "input": {"required": {"text": ["STRING", {"multiline": True}], "clip": ["CLIP", {}]}},
        "display_name": "CLIP Text Encode (Prompt)",
    },
    "EmptyLatentImage": {
        "input": {
            "required": {
                "width": ["INT", {"default": 512}],
                "height": ["INT", {"default": 512}],
                "batch_size": ["INT", {"default": 1}],
            }
        }
    },
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", SEED],
                "steps": ["INT", {"default": 20}],
                "cfg": ["FLOAT", {"default": 8.0}],
                "sampler_name": [["euler", "heun"], {}],
                "scheduler": [["simple", "normal"], {}],
                "positive": ["CONDITIONING", {}],
                "negative": ["CONDITIONING", {}],
                "latent_image": ["LATENT", {}],
                "denoise": ["FLOAT", {"default": 1.0}],
            }
        }
    },
    "LoraLoaderModelOnly": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "lora_name": ["COMBO", {"options": ["x.safetensors"]}],
                "strength_model": ["FLOAT", {"default": 1.0}],
            }
        }
    },
    "LoadImageMask": {
        "input": {
            "required": {"image": [["p.png"], {"image_upload": True}]},
            "optional": {"channel": ["COMBO", {"options": ["alpha", "red"]}]},
        }
    },
    "SwapLatents": {"input": {"required": {"a": ["LATENT", {}], "b": ["LATENT", {}]}}},
}


def entry(name: str, kind: str, link: int | None, widget: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})}


def node(
    key: int, kind: str, inputs: list[dict[str, Any]], outputs: list[str], values: Any = None, **more: Any
) -> dict[str, Any]:
    out = [{"name": name, "type": name, "links": []} for name in outputs]
    return {"id": key, "type": kind, "mode": 0, "inputs": inputs, "outputs": out, "widgets_values": values, **more}


@pytest.fixture
def workflow() -> dict[str, Any]:
    """Text to latent, with a LoRA, a reroute and a note, as the canvas saves it (version 0.4)."""
    sampler = [
        entry("model", "MODEL", 2),
        entry("positive", "CONDITIONING", 4),
        entry("negative", "CONDITIONING", 5),
        entry("latent_image", "LATENT", 6),
        entry("seed", "INT", None, widget=True),
    ]
    text = [entry("clip", "CLIP", 3)]
    return {
        "version": 0.4,
        "nodes": [
            node(1, "CheckpointLoaderSimple", [], ["MODEL", "CLIP", "VAE"], ["a.safetensors"]),
            node(2, "LoraLoaderModelOnly", [entry("model", "MODEL", 1)], ["MODEL"], ["x.safetensors", 0.8], title="The LoRA"),
            node(3, "CLIPTextEncode", text, ["CONDITIONING"], ["a cat"]),
            node(4, "CLIPTextEncode", [entry("clip", "CLIP", 8)], ["CONDITIONING"], ["blurry"]),
            node(5, "EmptyLatentImage", [], ["LATENT"], [128, 96, 1]),
            node(6, "KSampler", sampler, ["LATENT"], [42, "randomize", 12, 4.5, "heun", "normal", 0.9]),
            node(7, "Reroute", [entry("", "*", 7)], ["CLIP"]),
            node(8, "Note", [], [], ["Read me"]),
        ],
        "links": [
            [1, 1, 0, 2, 0, "MODEL"],
            [2, 2, 0, 6, 0, "MODEL"],
            [3, 1, 1, 3, 0, "CLIP"],
            [4, 3, 0, 6, 1, "CONDITIONING"],
            [5, 4, 0, 6, 2, "CONDITIONING"],
            [6, 5, 0, 6, 3, "LATENT"],
            [7, 1, 1, 7, 0, "CLIP"],
            [8, 7, 0, 4, 0, "CLIP"],
        ],
    }


def change(workflow: dict[str, Any], key: int, **changes: Any) -> dict[str, Any]:
    """A copy with one node changed."""
    out = copy.deepcopy(workflow)
    next(n for n in out["nodes"] if n["id"] == key).update(changes)
    return out


def test_widgets_follow_the_order_of_the_inputs_and_a_seed_takes_two_values(workflow: dict[str, Any]) -> None:
    prompt = to_prompt(workflow, OBJECT_INFO)
    assert prompt["6"]["class_type"] == "KSampler"
    assert prompt["6"]["inputs"] == {
        "model": ["2", 0],
        "seed": 42,
        "steps": 12,
        "cfg": 4.5,
        "sampler_name": "heun",
        "scheduler": "normal",
        "positive": ["3", 0],
        "negative": ["4", 0],
        "latent_image": ["5", 0],
        "denoise": 0.9,
    }


def test_the_canvas_own_nodes_are_not_queued_and_links_run_through_a_reroute(workflow: dict[str, Any]) -> None:
    prompt = to_prompt(workflow, OBJECT_INFO)
    assert sorted(prompt) == ["1", "2", "3", "4", "5", "6"]
    assert prompt["4"]["inputs"] == {"text": "blurry", "clip": ["1", 1]}


def test_titles_come_from_the_person_then_the_server_then_the_type(workflow: dict[str, Any]) -> None:
    prompt = to_prompt(workflow, OBJECT_INFO)
    assert [prompt[key]["_meta"]["title"] for key in ("2", "3", "5")] == [
        "The LoRA",
        "CLIP Text Encode (Prompt)",
        "EmptyLatentImage",
    ]


def test_a_bypassed_node_hands_its_input_of_the_same_type_on(workflow: dict[str, Any]) -> None:
    prompt = to_prompt(change(workflow, 2, mode=4), OBJECT_INFO)
    assert "2" not in prompt
    assert prompt["6"]["inputs"]["model"] == ["1", 0]


def test_a_bypassed_node_with_two_fitting_inputs_takes_the_one_at_the_same_place(workflow: dict[str, Any]) -> None:
    swap = node(9, "SwapLatents", [entry("a", "LATENT", 10), entry("b", "LATENT", 11)], ["LATENT", "LATENT"], mode=4)
    workflow["nodes"] += [node(10, "EmptyLatentImage", [], ["LATENT"], [64, 64, 1]), swap]
    workflow["links"] += [[10, 5, 0, 9, 0, "LATENT"], [11, 10, 0, 9, 1, "LATENT"]]
    workflow["links"][5] = [6, 9, 1, 6, 3, "LATENT"]
    assert to_prompt(workflow, OBJECT_INFO)["6"]["inputs"]["latent_image"] == ["10", 0]


def test_a_muted_node_cuts_the_link(workflow: dict[str, Any]) -> None:
    prompt = to_prompt(change(workflow, 2, mode=2), OBJECT_INFO)
    assert "2" not in prompt
    assert "model" not in prompt["6"]["inputs"]


def test_a_link_replaces_the_widget_it_was_converted_from(workflow: dict[str, Any]) -> None:
    linked = [entry("width", "INT", 12, widget=True)]
    workflow = change(workflow, 5, inputs=linked)
    workflow["nodes"].append(node(11, "PrimitiveNode", [], ["INT"], [256, "fixed"]))
    workflow["links"].append([12, 11, 0, 5, 0, "INT"])
    assert to_prompt(workflow, OBJECT_INFO)["5"]["inputs"] == {"width": 256, "height": 96, "batch_size": 1}
    workflow["nodes"][-1] = node(11, "KSampler", [], ["INT"], [1, "fixed", 1, 1.0, "euler", "simple", 1.0])
    assert to_prompt(workflow, OBJECT_INFO)["5"]["inputs"] == {"width": ["11", 0], "height": 96, "batch_size": 1}


def test_a_seed_without_its_second_value_still_reads_right(workflow: dict[str, Any]) -> None:
    inputs = to_prompt(change(workflow, 6, widgets_values=[42, 12, 4.5, "heun", "normal", 0.9]), OBJECT_INFO)["6"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["denoise"]) == (42, 12, 0.9)


def test_the_upload_button_has_a_value_between_required_and_optional() -> None:
    workflow = {"nodes": [node(1, "LoadImageMask", [], ["MASK"], ["p.png", "image", "red"])], "links": []}
    assert to_prompt(workflow, OBJECT_INFO)["1"]["inputs"] == {"image": "p.png", "channel": "red"}


def test_widgets_that_an_older_file_does_not_have_get_their_defaults(workflow: dict[str, Any]) -> None:
    inputs = to_prompt(change(workflow, 6, widgets_values=[42, "fixed", 12, 4.5]), OBJECT_INFO)["6"]["inputs"]
    assert (inputs["sampler_name"], inputs["scheduler"], inputs["denoise"]) == ("euler", "simple", 1.0)


def test_widgets_may_be_stored_by_name(workflow: dict[str, Any]) -> None:
    prompt = to_prompt(change(workflow, 5, widgets_values={"height": 32, "width": 48, "batch_size": 2}), OBJECT_INFO)
    assert prompt["5"]["inputs"] == {"width": 48, "height": 32, "batch_size": 2}


def test_links_may_be_objects(workflow: dict[str, Any]) -> None:
    expected = to_prompt(workflow, OBJECT_INFO)
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    workflow["links"] = [dict(zip(names, link, strict=True)) for link in workflow["links"]]
    assert to_prompt(workflow, OBJECT_INFO) == expected


def test_a_list_as_value_cannot_be_taken_for_a_link(workflow: dict[str, Any]) -> None:
    prompt = to_prompt(change(workflow, 3, widgets_values=[["5", 0]]), OBJECT_INFO)
    assert prompt["3"]["inputs"]["text"] == {"__value__": ["5", 0]}


def test_overrides_by_type_and_by_node_id(workflow: dict[str, Any]) -> None:
    prompt = to_prompt(workflow, OBJECT_INFO, {("KSampler", "steps"): 1, ("4", "text"): "ugly"})
    assert prompt["6"]["inputs"]["steps"] == 1
    assert [prompt[key]["inputs"]["text"] for key in ("3", "4")] == ["a cat", "ugly"]


@pytest.mark.parametrize("key", [("KSampler", "stepz"), ("Ksampler", "steps"), ("99", "text")])
def test_an_override_that_fits_nothing_is_an_error(workflow: dict[str, Any], key: tuple[str, str]) -> None:
    with pytest.raises(WorkflowError, match=key[1]):
        to_prompt(workflow, OBJECT_INFO, {key: 1})


def test_a_missing_node_is_named(workflow: dict[str, Any]) -> None:
    with pytest.raises(WorkflowError, match="LoraLoaderModelOnly"):
        to_prompt(workflow, {name: info for name, info in OBJECT_INFO.items() if name != "LoraLoaderModelOnly"})


def test_a_missing_node_does_not_matter_while_it_is_muted(workflow: dict[str, Any]) -> None:
    workflow["nodes"].append(node(20, "NeverInstalled", [], [], mode=2))
    assert "20" not in to_prompt(workflow, OBJECT_INFO)


def test_a_circle_of_reroutes_ends_with_an_error(workflow: dict[str, Any]) -> None:
    workflow["links"][6] = [7, 7, 0, 7, 0, "CLIP"]
    with pytest.raises(WorkflowError, match="circle"):
        to_prompt(workflow, OBJECT_INFO)


def test_other_files_are_told_from_workflows() -> None:
    with pytest.raises(WorkflowError, match="no workflow file"):
        to_prompt({"3": {"class_type": "KSampler", "inputs": {}}}, OBJECT_INFO)


def test_restoring_names_every_widget_and_changes_nothing_that_runs(workflow: dict[str, Any]) -> None:
    again = restored(workflow, OBJECT_INFO)
    sampler = next(n for n in again["nodes"] if n["id"] == 6)
    assert [entry["name"] for entry in sampler["inputs"]] == [
        "model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise",
    ]  # fmt: skip
    assert named_values(next(n for n in workflow["nodes"] if n["id"] == 6)) == {}, "the older file names the seed alone"
    named = named_values(sampler)
    assert (named["seed"], named["steps"], named["denoise"]) == (42, 12, 0.9)
    assert to_prompt(again, OBJECT_INFO) == to_prompt(workflow, OBJECT_INFO)
    assert [n for n in again["nodes"] if n["type"] in ("Note", "Reroute")] == workflow["nodes"][6:]
    assert restored(again, OBJECT_INFO) == again


def test_values_find_their_widgets_after_the_node_has_changed(workflow: dict[str, Any]) -> None:
    """A widget in the middle is new, one is gone, two have changed places, and a socket came in front of the others."""
    before = restored(workflow, OBJECT_INFO)
    known = OBJECT_INFO["KSampler"]["input"]["required"]
    order = ("seed", "added", "cfg", "steps", "sampler_name", "positive", "negative", "latent_image", "denoise")
    required = {"model": known["model"], **{name: known.get(name, ["FLOAT", {"default": 0.25}]) for name in order}}
    info = {**OBJECT_INFO, "KSampler": {"input": {"required": {"mask": ["MASK", {}], **required}}}}
    after = restored(before, info)
    sampler = next(n for n in after["nodes"] if n["id"] == 6)
    assert sampler["widgets_values"] == [42, "randomize", 0.25, 4.5, 12, "heun", 0.9]
    assert [link[4] for link in after["links"] if link[3] == 6] == [1, 2, 3, 4], "the links lead to the sockets' new places"
    inputs = to_prompt(after, info)["6"]["inputs"]
    assert {name: inputs[name] for name in ("seed", "added", "cfg", "steps", "denoise", "latent_image")} == {
        "seed": 42, "added": 0.25, "cfg": 4.5, "steps": 12, "denoise": 0.9, "latent_image": ["5", 0],
    }  # fmt: skip


def test_a_named_preset_gives_its_values() -> None:
    required = {"preset": [["own", "fast"], {}], "name": ["STRING", {"default": ""}], "steps": ["INT", {"default": 20}]}
    info = {"Recipe": {"input": {"required": required}}}
    presets = {"fast": {"steps": 4}}

    def stored(*values: Any) -> list[Any]:
        return restored({"nodes": [node(1, "Recipe", [], [], list(values))], "links": []}, info, presets)["nodes"][0][
            "widgets_values"
        ]

    assert stored("fast", "mine", 99) == ["fast", "mine", 4] and stored("own", "mine", 99) == ["own", "mine", 99]


def test_a_file_has_a_line_for_every_node_and_link(workflow: dict[str, Any]) -> None:
    text = to_text(workflow)
    assert json.loads(text) == workflow
    assert len(text.splitlines()) == 3 + 2 * 2 + len(workflow["nodes"]) + len(workflow["links"])
