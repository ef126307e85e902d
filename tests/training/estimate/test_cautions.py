"""What a person is warned of before a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import LengthConfig, NetworkConfig, NoiseConfig, OptimizerConfig, TextConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.estimate import cautions as module
from lora_atelier.training.estimate.cautions import Prospect, cautions, expected_files
from lora_atelier.training.families import assistant_word, noise_half
from lora_atelier.training.grid.foreseen import missing_epochs
from lora_atelier.training.loop import save_kind
from lora_atelier.training.starting import points

GB = 10**9


def run(**settings: object) -> TrainingConfig:
    return TrainingConfig("a", **settings)  # type: ignore[arg-type]


def prospect(length: LengthConfig | None = None, steps: int | None = 10, **more: object) -> Prospect:
    return Prospect(run(length=length or LengthConfig()), steps, **more)  # type: ignore[arg-type]


def test_a_sound_run_is_left_in_peace() -> None:
    whole = Prospect(
        run(), 30, 20_000_000, 10**8, 100 * GB, "flux1-dev", "Flux", 24 * GB, (512, 1024), "cuda", 2, False
    )  # fmt: skip
    assert cautions(whole) == [] and cautions(Prospect(run())) == []


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (OptimizerConfig("AdamW", 1.0), "learning rate: 1 is far too high for AdamW"),
        (OptimizerConfig("AdamW", 1e-8), "learning rate: at 1e-08 AdamW learns next to nothing"),
        (OptimizerConfig("SGD", 1e-6), "learning rate: at 1e-06 SGD learns next to nothing"),
        (OptimizerConfig("Lion", 0.01), "learning rate: 0.01 is far too high for Lion"),
        (OptimizerConfig("Prodigy", 0.01), "learning rate: Prodigy multiplies"),
        (OptimizerConfig("Adafactor", 1.0, schedule="constant"), "learning rate: 1 is far too high for Adafactor"),
    ],
)
def test_rates_far_from_those_that_an_optimizer_is_used_with(optimizer: OptimizerConfig, said: str) -> None:
    assert any(one.startswith(said) for one in cautions(Prospect(run(optimizer=optimizer))))


@pytest.mark.parametrize(
    ("optimizer", "rate", "warned"),
    [
        (OptimizerConfig("AdamW"), 1.0, True), (OptimizerConfig("AdamW"), 5e-5, False), (OptimizerConfig("AdamW"), 0.0, False),
        (OptimizerConfig("DAdaptAdam", 1.0), 5e-5, True), (OptimizerConfig("DAdaptAdam", 1.0), 0.5, False),
        (OptimizerConfig("Prodigy", 1.0), 0.0, False), (OptimizerConfig("Prodigy", 1.0), 1.0, False),
    ],
)  # fmt: skip
def test_the_text_encoders_rate_is_looked_at_too(optimizer: OptimizerConfig, rate: float, warned: bool) -> None:
    found = cautions(Prospect(run(optimizer=optimizer, text=TextConfig("all", rate))))
    assert any(one.startswith("text_encoder_rate: ") for one in found) == warned
    assert not cautions(Prospect(run(optimizer=optimizer, text=TextConfig("none", rate))))


@pytest.mark.parametrize(
    "name",
    [
        "z_image_turbo_bf16", "flux1-schnell-fp8", "flux-2-klein-4b", "FLUX.2-klein-9B-fp8", "sd3.5_large_turbo", "krea2_turbo",
        "DreamShaperXL_Lightning", "dreamshaperXLTurbo_v2", "qwen_image_distilled_full",
        "hunyuanimage2.1_distilled", "sdxl-lcm", "chroma1-flash", "juggernautXL_8steps", "sdxl_4-step", "model_DMD2",
        "qwen_image_distill_full_bf16", "hidream_i1_fast", "lightx2v_cfg_step_distill", "flux-2-klein-4b-base-turbo",
        "Wan21_CausVid_14B", "wan2.1_FusionX", "self_forcing_dmd", "TCD_SDXL",
    ],
)  # fmt: skip
def test_a_name_that_stands_for_few_steps_is_a_guess(name: str) -> None:
    (said,) = cautions(Prospect(run(), model=name))
    assert name in said and "that is a guess" in said


@pytest.mark.parametrize(
    "name",
    [
        "flux1-dev", "z_image_bf16", "flux-2-klein-base-4b", "flux-2-klein-4b-base", "sd_xl_base_1.0", "qwen_image", "",
        "flux-schnell-dedistilled", "z-image-de-turbo-dedistilled", "turbofan-photos", "my-2000-steps-merge", "HyperRealism",
        "flashlight", "chroma-unlocked-v48", "rapids", "12steps", "z_image_de_turbo_v1_bf16", "Z-Image-De-Turbo",
        "flux-schnell-de-distill", "OpenFlux_schnell_dedistill", "hunyuanvideo1.5_480p_t2v_cfg_distilled_fp16",
        "fusionXL_v2", "flux-dev-guidance-distilled", "Hyper-Realistic_v3", "hyper_realism_xl", "Flash_Photography", "deTurbo",
    ],
)  # fmt: skip
def test_other_names_are_not_taken_for_it(name: str) -> None:
    assert cautions(Prospect(run(), model=name)) == []


@pytest.mark.parametrize("kind", [
    {"text": TextConfig("all", 0.5)}, {"network": NetworkConfig(lora_plus_ratio=4.0)},
    {"network": NetworkConfig(rules="attn rate=2")},
])  # fmt: skip
def test_prodigy_is_refused_where_it_would_be_behind_everything_else(kind: dict[str, object]) -> None:
    with pytest.raises(AtelierError, match="Prodigy estimates one rate"):
        run(optimizer=OptimizerConfig("Prodigy", 1.0), **kind)
    run(optimizer=OptimizerConfig("DAdaptAdam", 1.0), **kind)


def test_no_starting_point_is_cautioned_against() -> None:
    parts = points.catalogue()
    for model in parts.models.values():
        for there in parts.memory.values():
            side = points.fitted(model, there).side
            for family in set(model.families) - {"FluxSchnell"}:
                assert cautions(Prospect(run(), family=family, model_bytes=10 * GB, sides=(side,))) == [], (family, side)


ADAPTER, LIGHTNING = "zimage_turbo_training_adapter_v2", "sdxl_lightning_4step_lora"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"loras": (ADAPTER,)}, [f"preview_model: {ADAPTER} lies on the model"]),
        ({"loras": (ADAPTER,), "preview": "z_image_turbo"}, []),
        ({"loras": ("pytorch_lora_weights",), "preview": "z_image_turbo", "assisted": True}, []),
        ({"loras": ("pytorch_lora_weights",), "preview": "z_image_turbo"}, ["model: by its name, z_image_turbo"]),
        ({"model": "sd_xl_base_1.0", "loras": ("sdxl_lightning_4step_lora",)}, ["model: sdxl_lightning_4step_lora lies on it"]),
        ({"model": "sd_xl_base_1.0", "loras": ("my_watercolour",), "preview": "sd_xl_base_1.0"}, []),
        ({"model": "z_image", "preview": "z_image_turbo"}, []),
        ({"model": "z_image", "preview": "z_image_turbo", "drawn_at": (20, 4.0)}, ["preview_cfg: z_image_turbo seems"]),
        ({"model": "z_image", "preview": "z_image_turbo", "drawn_at": (8, 1.0)}, []),
        ({"model": "z_image", "drawn_at": (20, 4.0)}, []),
        (
            {"loras": (ADAPTER,), "preview": "z_image_turbo", "preview_loras": (ADAPTER,)},
            [f"preview_model: {ADAPTER} lies on it, by its name for training alone"],
        ),
        (
            {"model": "sd_xl_base_1.0", "loras": (LIGHTNING,), "preview": "sd_xl_base_1.0", "assisted": True},
            [f"model: {LIGHTNING} lies on it"],
        ),
        (
            {"model": "sd_xl_base", "preview": "sd_xl_base", "preview_loras": ("ink", LIGHTNING), "drawn_at": (20, 4.0)},
            [f"preview_cfg: {LIGHTNING} seems"],
        ),
        ({"model": "sd_xl_base_1.0", "preview": "sd_xl_base_1.0", "preview_loras": (LIGHTNING,), "drawn_at": (8, 1.0)}, []),
        (
            {"model": "z_image", "preview": "z_image", "loras": (ADAPTER,), "preview_loras": (ADAPTER,), "drawn_at": (20, 4.0)},
            ["preview_model: "],
        ),
        ({"loras": ("zimage_turbo_assistant",), "preview": "z_image_turbo", "assisted": True}, []),
        ({"loras": ("turbo_helper",), "preview": "z_image_turbo", "assisted": True}, []),
        ({"loras": ("turbo_helper",)}, ["model: by its name, z_image_turbo"]),
        ({"model": "x", "few_steps": "its network is told where each step ends"}, ["model: its network is told"]),
        ({"model": "Ovis-Image-7B", "family": "FluxSchnell"}, []),
        ({"model": "libreflux", "family": "FluxSchnell"}, []),
        ({"model": "OpenFLUX.1", "family": "FluxSchnell"}, []),
    ],
)  # fmt: skip
def test_who_trains_a_distilled_model_rightly_is_left_in_peace(facts: dict[str, object], said: list[str]) -> None:
    found = cautions(Prospect(run(), **{"model": "z_image_turbo", **facts}))  # type: ignore[arg-type]
    assert len(found) == len(said) and all(one.startswith(start) for one, start in zip(found, said, strict=True)), found


@pytest.mark.parametrize("name", [
    ADAPTER, "krea2_turbo_training_adapter_v1", "FLUX.1-schnell-training-adapter", "Qwen-Image-2.1-training-assistant-v3",
    "z_image_de_turbo_lora", "flux-dedistill", "UnDistilled_v1", "zimage_turbo_assistant", "TurboAssistant",
])  # fmt: skip
def test_an_adapter_for_training_is_told_by_its_name(name: str) -> None:
    assert assistant_word(name)
    assert not assistant_word(
        name.replace("raining", "rain").replace("ssistant", "ssist").replace("istil", "ust").replace("e_turbo", "usk")
    )


def test_the_ways_out_are_named() -> None:
    (said,) = cautions(Prospect(run(), model="z_image_turbo_bf16", family="ZImage"))
    assert "preview_model of Train LoRA" in said and "ostris/zimage_turbo_training_adapter" in said


def test_what_the_host_knows_is_no_guess() -> None:
    (said,) = cautions(Prospect(run(), model="renamed", family="FluxSchnell"))
    assert "distilled" in said and "guess" not in said and "Flux.1 dev" in said


@pytest.mark.parametrize(
    ("family", "side", "warned"),
    [
        ("SD15", 512, False), ("SD15", 768, False), ("SD15", 1024, True), ("SD15", 256, True), ("SDXL", 512, True),
        ("SDXL", 1024, False), ("Flux", 512, False), ("Flux", 256, True), ("QwenImage", 1328, False), ("Unheard", 64, False),
    ],
)  # fmt: skip
def test_a_resolution_that_is_not_the_models_own(family: str, side: int, warned: bool) -> None:
    found = cautions(Prospect(run(), family=family, model_bytes=2 * GB, sides=(side, side)))
    assert len(found) == warned and all(one.startswith(f"resolution: {side} ") for one in found)
    assert cautions(Prospect(run(), family=family, model_bytes=10**6, sides=(side,))) == [], "no published model is so small"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("Prodigy", "prodigyopt"), ("AdamW8bit", "bitsandbytes"), ("CAME", "pytorch-optimizer"), ("Lion8bit", "bitsandbytes"),
        ("ProdigyPlusScheduleFree", "prodigy-plus-schedule-free"), ("Muon", "pytorch-optimizer"),
    ],
)  # fmt: skip
def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str, missing: str) -> None:
    monkeypatch.setattr(module, "_is_installed", lambda _module: False)
    rate = 1.0 if name.startswith("Prodigy") else 1e-4
    (said,) = cautions(Prospect(run(optimizer=OptimizerConfig(name, rate, schedule="constant"))))  # type: ignore[arg-type]
    assert said.startswith(f"optimizer: {name} needs the Python package {missing}, which is not installed.")
    assert "pip install" in said
    assert cautions(Prospect(run(), focus=True))[0].startswith("crop: focus needs the Python package smartcrop")
    assert cautions(Prospect(run())) == []


def test_packages_are_found_without_being_imported() -> None:
    assert module._is_installed("torch.optim") and not module._is_installed("no_such_package.at_all")


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit"])
def test_an_optimizer_of_another_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "_is_installed", lambda _module: True)
    bits = run(optimizer=OptimizerConfig(name))  # type: ignore[arg-type]
    assert "needs a CUDA GPU" in cautions(Prospect(bits, device="cpu"))[0] and cautions(Prospect(bits, device="cuda")) == []


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("wan2.2_t2v_high_noise_14B_fp8_scaled", "high"), ("wan2.2_t2v_low_noise_14B_fp16", "low"),
        ("Wan2.2-T2V-A14B-HighNoise-Q8_0", "high"), ("Wan22T2VLowNoise", "low"), ("wan22-t2v-HIGH-NOISE", "high"),
        ("low noise wan", "low"), ("wan2.1_t2v_14B", ""), ("wan_slow_noise", ""), ("high_noise_and_low_noise_merged", ""),
        ("wan_high_noisey", ""), ("wan_high_quality", ""),
    ],
)  # fmt: skip
def test_a_half_is_told_by_its_name(name: str, half: str) -> None:
    assert noise_half(name) == half


@pytest.mark.parametrize(
    ("half", "lowest", "highest", "warned"),
    [
        ("high", 0.0, 1.0, True), ("high", 0.875, 1.0, False), ("high", 0.87, 1.0, False), ("high", 0.9, 0.95, False),
        ("high", 0.0, 0.875, True), ("low", 0.0, 1.0, True), ("low", 0.0, 0.875, False), ("low", 0.0, 0.88, False),
        ("low", 0.875, 1.0, True), ("low", 0.2, 0.5, False),
    ],
)  # fmt: skip
def test_the_half_of_a_model_is_trained_on_its_own_levels(half: str, lowest: float, highest: float, warned: bool) -> None:
    """0.875 is ``boundary`` of wan_t2v_A14B in Wan 2.2's own configurations."""
    config = run(noise=NoiseConfig(lowest=lowest, highest=highest))
    said = cautions(Prospect(config, model=f"wan2.2_t2v_{half}_noise_14B", family="WAN21_T2V"))
    assert len(said) == warned
    if warned:
        widget, own = ("lowest_level", "0.875 and highest_level to 1") if half == "high" else (
            "highest_level", "0 and highest_level to 0.875")  # fmt: skip
        assert said[0].startswith(f"{widget}: by its name") and f"Set lowest_level to {own}," in said[0]
    assert cautions(Prospect(config, model=f"other_{half}_noise", family="Flux")) == []
    assert cautions(Prospect(config, model="wan2.1_t2v_14B", family="WAN21_T2V")) == []


def test_films_that_are_too_many_or_too_large_are_told() -> None:
    """120 saves of 3 films of 81 frames are 29,160 frames."""
    many = prospect(LengthConfig(epochs=120), samples=3 * 81, film=(81, 832, 480))
    (said,) = [one for one in cautions(many) if one.startswith("samples: ")]
    assert "films of 29,160 frames in all" in said and "lower preview_frames" in said
    small = {"film": (81, 832, 480), "film_bytes": 30 * GB, "device_bytes": 24 * GB}
    (said,) = cautions(prospect(LengthConfig(epochs=2), samples=81, **small))
    assert said.startswith("preview_frames: a sample of 81 frames at 832 x 480 takes about") and "Lower preview_frames" in said
    for none in ({"samples": 0}, {"device_bytes": 32 * GB}, {"film_bytes": None}):
        assert cautions(prospect(LengthConfig(epochs=2), **{"samples": 81, **small, **none})) == []


def test_thousands_of_files_are_counted_and_weighed() -> None:
    """12,500 epochs of 19 MB are 237.5 GB."""
    found = cautions(prospect(LengthConfig(epochs=12_500), file_bytes=19_000_000, free_bytes=100 * GB))
    assert found[0].startswith("save_every: 12,500 files would be saved of 19 MB, ") and "in all" in found[0]
    assert found[1].startswith("disk: ") and "are free" in found[1]
    few = LengthConfig(epochs=12_500, keep_last=5)
    assert cautions(prospect(few, file_bytes=19_000_000, free_bytes=100 * GB)) == []
    assert cautions(prospect(LengthConfig(epochs=5), file_bytes=GB, free_bytes=3 * GB))[0].startswith("disk: the run's 5 files")
    swept = cautions(prospect(LengthConfig(epochs=1), file_bytes=GB, free_bytes=3 * GB, trainings=5))
    assert swept[0].startswith("disk: the sweep's 5 files")
    assert cautions(prospect(LengthConfig(epochs=1), state_bytes=3 * GB, free_bytes=5 * GB))[0].startswith(
        "disk: the run's 1 file "
    )


def test_samples_are_counted_too() -> None:
    often = LengthConfig(epochs=10, sample_every_steps=1)
    (said,) = cautions(prospect(often, 1000, samples=3))
    assert said.startswith("samples: 30,000 pictures")
    assert cautions(prospect(often, 1000)) == []


@given(
    st.integers(1, 12), st.integers(1, 7), st.integers(0, 4), st.integers(0, 9), st.integers(0, 4), st.sampled_from([0, 5, 23])
)  # fmt: skip
def test_the_expected_files_are_those_that_the_loop_saves(
    epochs: int, each: int, save_every: int, by_step: int, keep: int, most: int
) -> None:
    """Gone through step by step, as the loop does."""
    length = LengthConfig(epochs, most, save_every, by_step, keep)
    total, saved = most or epochs * each, []
    for step in range(1, total + 1):
        epoch = (step - 1) // each + 1
        kind = save_kind(step, epoch, step % each == 0 or step == total, step == total, run(length=length))
        if kind:
            saved.append((epoch, step, kind))
    on_the_way = saved[:-1]
    kept = [*(on_the_way[-keep:] if keep else on_the_way), saved[-1]]
    found = expected_files(prospect(length, each))
    assert found is not None and [(one.epoch, one.step, one.kind) for one in found] == kept


def test_too_many_files_are_not_listed_and_unknown_ones_are_not_guessed() -> None:
    assert expected_files(prospect(LengthConfig(max_steps=10**7, save_every_steps=1))) is None
    assert expected_files(prospect(LengthConfig(max_steps=10), None)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("all", ""), ("every 3", ""), ("last", ""), ("2, 4", ""), ("1-20", ""), ("11", "will save none of '11'"),
        ("2, 3", "will not save 3"), ("12-20", "will save none of '12-20'"), ("1,,x", "which_epochs: "), ("every 0", "every 0"),
    ],
)  # fmt: skip
def test_epochs_that_the_run_will_not_save(text: str, said: str) -> None:
    files = expected_files(prospect(LengthConfig(epochs=10, save_every=2)))
    found = missing_epochs([text, text], files)
    assert (said in found[0] and len(found) == 1) if said else found == []


def test_a_typing_mistake_is_told_before_the_length_is_known() -> None:
    assert missing_epochs(["x", "99"], None)[0].startswith("which_epochs: ") and len(missing_epochs(["99"], None)) == 0
