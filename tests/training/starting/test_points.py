"""Starting points: their parts are sound, what they are composed to is a valid recipe, and a damaged list is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.starting import points

PARTS = points.catalogue()
KINDS = [(model, subject, memory) for model in PARTS.models for subject in PARTS.subjects for memory in PARTS.memory]
ASKED = (
    "SD 1.5", "SDXL", "Illustrious", "Pony", "NoobAI v-pred", "SD 3.5 medium", "SD 3.5 large", "Flux dev", "Flux.2 dev",
    "Flux.2 klein 4B", "Flux.2 klein 9B", "Chroma", "Z-Image", "Qwen-Image", "Krea 2", "HunyuanImage 2.1", "Wan 14B", "Wan 1.3B",
    "Wan 2.2 5B", "Anima", "Cosmos-Predict2", "Lumina 2",
)  # fmt: skip


def test_the_models_that_are_asked_for_are_there() -> None:
    assert {*ASKED, points.OTHER} == PARTS.models.keys()
    assert list(PARTS.memory) == ["8 GB", "12 GB", "16 GB", "24 GB"]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_twenty_four_pictures_make_a_run_of_usual_length(kind: tuple[str, str, str]) -> None:
    values = points.compose(points.Choice(*kind))
    data, config = values["LoadDataset"], values["ConfigureLoRA"]
    steps = -(-24 * data["repeats"] // data["batch_size"]) * config["epochs"]
    assert 1500 <= steps <= 2100


@pytest.mark.parametrize("model", PARTS.models)
def test_samples_are_drawn_as_the_model_is_drawn_with(model: str) -> None:
    values = points.compose(points.Choice(model, "style", "24 GB"))
    train, grid = values["TrainLoRA"], values["EpochWeightGrid"]
    assert [train[f"preview_{name}"] for name in ("sampler", "scheduler", "steps", "cfg", "width", "height")] == [
        grid[name] for name in ("sampler_name", "scheduler", "steps", "cfg", "width", "height")
    ]
    assert grid["width"] >= values["LoadDataset"]["resolution"]


@pytest.mark.parametrize("model", [name for name in PARTS.models if name != points.OTHER])
def test_every_model_says_where_its_numbers_come_from(model: str) -> None:
    part = PARTS.models[model]
    assert part.sources and all(re.match(r"https://\S+", source) for source in part.sources.values())


def test_less_memory_never_asks_for_more() -> None:
    for part in PARTS.models.values():
        fits = [points.fitted(part, memory) for memory in PARTS.memory.values()]
        order = [(fit.side, -PARTS.thrift.index(fit.thrift)) for fit in fits]
        assert [side for side, _ in order] == sorted(side for side, _ in order)
        assert all(fit.fits for fit in fits) or part.billions > 20


@pytest.mark.parametrize(
    ("family", "billions", "name", "mark", "kind"),
    [
        ("SDXL", 2.57, "sd_xl_base_1.0.safetensors", False, "SDXL"),
        ("SDXL", 2.57, "Illustrious-XL-v1.1.safetensors", False, "Illustrious"),
        ("SDXL", 2.57, "ponyDiffusionV6XL.safetensors", False, "Pony"),
        ("SDXL", 2.57, "noobaiXLNAIXL_vPred10Version.safetensors", False, "NoobAI v-pred"),
        ("SDXL", 2.57, "anything.safetensors", True, "NoobAI v-pred"),
        ("SDXL", 2.57, "noobai-XL-1.0.safetensors", False, "Illustrious"),
        ("SD3", 2.24, "sd3.5_medium.safetensors", False, "SD 3.5 medium"),
        ("SD3", 8.1, "sd3.5_large.safetensors", False, "SD 3.5 large"),
        ("Flux2", 32.2, "flux2_dev_fp8mixed.safetensors", False, "Flux.2 dev"),
        ("Flux2", 3.9, "flux-2-klein-base-4b.safetensors", False, "Flux.2 klein 4B"),
        ("Flux2", 9.1, "flux-2-klein-base-9b.safetensors", False, "Flux.2 klein 9B"),
        ("WAN21_T2V", 1.4, "wan2.1_t2v_1.3B_bf16.safetensors", False, "Wan 1.3B"),
        ("WAN21_T2V", 14.3, "wan2.2_t2v_low_noise_14B.safetensors", False, "Wan 14B"),
        ("ErnieImage", 8.0, "ernie.safetensors", False, points.OTHER),
        (None, 8.0, "what.safetensors", False, points.OTHER),
    ],
)
def test_a_model_is_told_by_family_mark_name_and_size(family, billions, name, mark, kind) -> None:
    assert points.kind_of(family, billions, name, mark) == kind


@pytest.mark.parametrize(
    ("name", "distilled"),
    [
        ("z_image_turbo_bf16.safetensors", True), ("flux1-schnell.safetensors", True), ("flux-2-klein-4b.safetensors", True),
        ("flux-2-klein-base-4b.safetensors", False), ("z_image_bf16.safetensors", False), ("Chroma1-HD.safetensors", False),
    ],
)  # fmt: skip
def test_a_distilled_model_is_drawn_in_few_steps_without_guidance(name: str, distilled: bool) -> None:
    values = points.compose(points.Choice("Z-Image", "style", "16 GB"), (name,))
    assert (values["EpochWeightGrid"]["cfg"] == 1.0, values["EpochWeightGrid"]["steps"] <= 10) == (distilled, distilled)


@pytest.mark.parametrize(
    ("gib", "name"), [(3.9, "8 GB"), (8.0, "8 GB"), (11.7, "12 GB"), (15.9, "16 GB"), (23.5, "24 GB"), (80.0, "24 GB")]
)
def test_a_card_that_tells_a_little_less_than_is_on_its_box(gib: float, name: str) -> None:
    assert points.memory_named(gib) == name


@given(st.sampled_from(list(PARTS.subjects)), st.integers(1, 5000))
def test_a_length_comes_near_to_the_subjects_steps(subject: str, each: int) -> None:
    repeats, epochs = points.length_for(subject, each)
    steps = PARTS.subjects[subject].steps
    assert repeats >= 1 and 1 <= epochs <= points.EPOCHS
    if each <= steps:
        assert abs(repeats * each * epochs - steps) <= max(each * epochs, each) / 2 + 1e-9
    else:
        assert (repeats, epochs) == (1, 1)


def test_a_choice_of_what_is_not_there_names_what_is() -> None:
    with pytest.raises(AtelierError, match=r"subject: 'cat' is not one of style, person, object"):
        points.Choice("SDXL", "cat", "8 GB")


def damaged(change: dict[str, object], remove: str = "") -> str:
    data = json.loads(points.FILE.read_text(encoding="utf-8"))
    data["models"]["SDXL"].update(change)
    data.pop(remove, None)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (damaged({"side": 1000}), "SDXL: a size is out of range"),
        (damaged({"words": "songs"}), "there are no words 'songs'"),
        (damaged({"steps": 0}), "SDXL: a number is not above 0"),
        (damaged({"colour": "red"}), "no list of starting points"),
        (damaged({"named": "("}), "no list of starting points"),
        (damaged({}, "memory"), "no list of starting points"),
        ("[]", "no list of starting points"),
    ],
)
def test_a_list_that_is_not_sound_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "points.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AtelierError, match=re.escape(said)):
        points.read_catalogue(file)


def test_the_page_says_what_is_set() -> None:
    from .presets_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: see presets_page.py"
