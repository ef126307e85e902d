"""Configure LoRA: widgets to settings, and the presets that the canvas fills them with."""

from __future__ import annotations

import dataclasses
import json

import pytest
from lora_atelier.training import config as settings
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optim import schedules
from lora_atelier.training.starting import points


@pytest.fixture(scope="module")
def module(comfyui):
    from lora_atelier.nodes import configure_lora

    return configure_lora


@pytest.fixture(scope="module")
def presets(module, root) -> dict[str, dict]:
    return json.loads((root / "js" / "presets.json").read_text(encoding="utf-8"))


def widgets_of(module) -> dict[str, object]:
    inputs = module.ConfigureLoRA.define_schema().inputs
    return {entry.id: getattr(entry, "default", None) for entry in inputs}


def test_the_widgets_defaults_are_those_of_the_settings(module):
    assert module.build(**widgets_of(module)) == settings.TrainingConfig("my-lora")


def test_every_setting_has_a_widget(module):
    widgets = set(widgets_of(module))
    assert set(module.WIDGETS) <= widgets
    reached = {(part, field) for part, field in module.WIDGETS.values()}
    every = {(part, f.name) for part, kind in module.KINDS.items() for f in dataclasses.fields(kind)}
    assert reached == every
    own = {f.name for f in dataclasses.fields(settings.TrainingConfig)} - set(module.KINDS) - {"varied"}
    assert own <= widgets
    assert widgets == set(module.WIDGETS) | own | {"preset", "sweep"}


def test_a_sweep_is_a_recipe_for_each_combination(module):
    def made(text: str, **more: object) -> list[settings.TrainingConfig]:
        (recipes,) = module.ConfigureLoRA.execute(**{**widgets_of(module), **more, "sweep": text}).result
        return recipes

    assert made("") == [settings.TrainingConfig("my-lora")]
    recipes = made("rank: 4, 8\nlearning_rate: 1e-4, 1e-3", alpha=0.0)
    assert [(one.network.rank, one.optimizer.learning_rate) for one in recipes] == [(4, 1e-4), (4, 1e-3), (8, 1e-4), (8, 1e-3)]
    assert len({one.run_name for one in recipes}) == 4 and {one.name for one in recipes} == {"my-lora"}
    with pytest.raises(AtelierError, match="learning rate: Prodigy finds the rate itself"):
        made("optimizer: AdamW, Prodigy")
    said = module.ConfigureLoRA.validate_inputs(sweep="name: a, b")
    assert "'name' cannot vary" in said and module.ConfigureLoRA.validate_inputs(name="ink", sweep="seed: 1-3") is True
    assert {"rank", "compile", "optimizer", "seed"} <= module.varying().keys()
    assert not {"preset", "name", "start_from", "comment", "rules", "sweep"} & module.varying().keys()


def test_a_contradiction_is_said_in_a_sentence(module):
    with pytest.raises(AtelierError, match="learning rate: Prodigy finds the rate itself"):
        module.build(**{**widgets_of(module), "optimizer": "Prodigy", "schedule": "constant"})


def test_what_is_rarely_needed_is_folded_away(module):
    info = module.ConfigureLoRA.GET_NODE_INFO_V1()["input"]
    shown = [name for group in info.values() for name, spec in group.items() if not spec[1].get("advanced")]
    assert shown == [
        "preset", "name", "rank", "alpha", "targets", "learning_rate", "optimizer", "schedule", "epochs", "max_steps",
        "save_every", "seed", "text_encoder",
    ]  # fmt: skip


def test_every_preset_is_listed_and_makes_a_valid_recipe(module, presets):
    from lora_atelier.nodes import presets as names

    assert list(presets) == list(names.RECIPES)
    assert {*presets, *points.catalogue().models, *names.ALIASES, names.OWN, names.SUITED} - {points.OTHER} <= {
        *names.preset_names()
    }
    assert names.preset_names()[0] == names.SUITED == widgets_of(module)["preset"]
    widgets = widgets_of(module)
    for name, values in presets.items():
        assert values.keys() <= widgets.keys(), name
        module.build(**{**widgets, **values})


def test_presets_leave_nothing_of_one_another_behind(presets):
    assert len({frozenset(values) for values in presets.values()}) == 1


def recipe(module, presets, name: str) -> settings.TrainingConfig:
    return module.build(**{**widgets_of(module), **presets[name]})


def test_r1_has_its_rate_curve_and_trains_clip(module, presets):
    r1 = recipe(module, presets, "R1 Ink & Lore (Flux style)")
    assert (r1.network.rank, r1.network.alpha, r1.optimizer.name) == (8, 8.0, "AdamW8bit")
    assert (r1.text.encoders, r1.text.learning_rate, r1.length.max_steps) == ("clip", 5e-5, 2000)
    assert r1.optimizer.args == {"betas": (0.9, 0.999)} and r1.optimizer.weight_decay == 0.01
    rates = [6e-4 * schedules.factor(r1.optimizer, step, 2000) for step in (0, 100, 200, 1599, 1600, 1999)]
    # Half-way down a cosine lies the mean of both ends; after eight cycles the rate stays where it is.
    assert rates[:3] == pytest.approx([6e-4, 4e-4, 6e-4]) and rates[3] == pytest.approx(2e-4, rel=1e-3)
    assert rates[4:] == pytest.approx([2e-4, 2e-4])


def test_r2_trains_the_unet_only_with_d_adaptation(module, presets):
    r2 = recipe(module, presets, "R2 Style guide (SDXL)")
    assert (r2.optimizer.name, r2.optimizer.learning_rate) == ("DAdaptAdamW", 1.0)
    assert (r2.network.rank, r2.network.alpha, r2.text.encoders) == (64, 32.0, "none")
    assert (r2.length.epochs, r2.length.save_every) == (20, 1)


def test_r3_leaves_five_files_of_ten_epochs(module, presets):
    r3 = recipe(module, presets, "R3 Hosted trainer (SD1.5)")
    assert r3.length.epochs // r3.length.save_every == 5
    assert (r3.precision, r3.save_precision, r3.optimizer.learning_rate) == ("fp16", "fp16", 1e-4)
    assert 1e-5 <= r3.text.learning_rate <= 5e-5 and 3 <= r3.optimizer.cycles <= 5


@pytest.mark.parametrize("kind", ["(SD1.5)", "DAdaptAdam", "Adafactor"])
def test_r4_in_its_three_kinds(module, presets, kind):
    r4 = recipe(module, presets, next(name for name in presets if name.startswith("R4") and name.endswith(kind)))
    assert (r4.network.rank, r4.network.alpha, r4.length.max_steps) == (128, 64.0, 4800)
    if kind == "DAdaptAdam":
        assert r4.optimizer.args == {"decouple": True, "weight_decay": 0.01, "betas": (0.9, 0.999)}
    if kind == "Adafactor":
        assert r4.optimizer.args == {"relative_step": True, "scale_parameter": True, "warmup_init": True}
    if kind != "(SD1.5)":
        assert r4.optimizer.learning_rate == 1.0 and r4.text.learning_rate == 1.0
    else:
        assert r4.optimizer.schedule == "cosine with restarts" and 3 <= r4.optimizer.cycles <= 5


def test_r5_has_prodigys_arguments_and_limits(module, presets):
    r5 = recipe(module, presets, "R5 SDXL subject, Prodigy")
    assert r5.optimizer.args == {"weight_decay": 0.01, "decouple": True, "d0": 0.0001, "use_bias_correction": True}
    assert (r5.optimizer.schedule, r5.optimizer.warmup_steps, r5.network.scale_weight_norms) == ("constant", 0, 5)
    assert (r5.network.rank, r5.network.alpha, r5.noise.offset, r5.gradient_checkpointing) == (96, 48.0, 0.1, True)
    assert (r5.precision, r5.save_precision, r5.text.encoders) == ("bf16", "bf16", "none")
    assert (r5.length.epochs, r5.length.save_every, r5.length.sample_every_steps) == (4, 1, 250)
    other = recipe(module, presets, "R5 SDXL subject, Adafactor")
    assert other.optimizer.args == {"scale_parameter": False, "relative_step": False, "warmup_init": False}
