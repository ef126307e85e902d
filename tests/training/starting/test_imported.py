"""Configurations of other trainers, by the names and forms that those trainers give them, read into widgets' values."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.starting import imported

KOHYA = """
pretrained_model_name_or_path = "/models/sd_xl_base_1.0.safetensors"
output_name = "ink"
[network]
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_args = ["conv_dim=8", "conv_alpha=4", "rank_dropout=0.1", "train_norm=True"]
network_train_unet_only = true
[optimizer]
optimizer_type = "bitsandbytes.optim.AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99", "broken=open('x')"]
learning_rate = 1e-4
unet_lr = 2e-4
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 3
lr_warmup_steps = 0.05
[training]
max_train_epochs = 10
max_train_steps = 1600
save_every_n_epochs = 2
train_batch_size = 4
resolution = "832,1216"
mixed_precision = "bf16"
save_precision = "fp16"
min_snr_gamma = 5
noise_offset = 0.05
loss_type = "l2"
enable_bucket = true
shuffle_caption = true
enable_wildcard = true
keep_tokens_separator = "|||"
keep_tokens = 1
caption_extension = ".txt"
cache_latents = true
xformers = true
blocks_to_swap = 18
face_crop_aug_range = "2.0,4.0"
seed = 42
"""
AI_TOOLKIT = """
job: extension
config:
  name: "my lora"
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      trigger_word: "ohwx"
      network: {type: lora, linear: 16, linear_alpha: 8}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - {folder_path: /pictures, caption_ext: txt, caption_dropout_rate: 0.05, resolution: [512, 768, 1024]}
        - {folder_path: /more}
      train:
        batch_size: 1
        steps: 2000
        gradient_accumulation: 2
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: flowmatch
        timestep_type: sigmoid
        optimizer: adamw8bit
        optimizer_params: {weight_decay: 1e-4}
        lr: 1e-4
        ema_config: {use_ema: true, ema_decay: 0.99}
        inverted_mask_prior: true
        dtype: bf16
      slider: {guidance_strength: 3.0, positive_prompt: "an old person", negative_prompt: "a young person"}
      model: {name_or_path: black-forest-labs/FLUX.1-dev, is_flux: true, quantize: true}
      sample:
        sampler: flowmatch
        sample_every: 250
        width: 1024
        height: 768
        prompts: ["a fox", "a cat\\nwith a hat"]
        neg: ""
        seed: 42
        walk_seed: true
        guidance_scale: 4
        sample_steps: 20
meta: {name: "[name]", version: '1.0'}
"""
ONE_TRAINER = {
    "base_model_name": "Tongyi-MAI/Z-Image", "batch_size": 2, "learning_rate": 0.0003, "model_type": "Z_IMAGE",
    "training_method": "LORA", "resolution": "512", "transformer": {"train": True, "weight_dtype": "FLOAT_8",
    "offload_fraction": 0.6},
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"}, "vae": {"weight_dtype": "FLOAT_32"}, "train_dtype": "BFLOAT_16",
    "output_dtype": "BFLOAT_16", "timestep_distribution": "LOGIT_NORMAL", "layer_filter_preset": "attn-mlp",
    "layer_filter": "attn",
    "optimizer": {"optimizer": "PRODIGY", "beta1": 0.9, "beta2": 0.99, "d_coef": 2.0, "fused_back_pass": True},
    "learning_rate_scheduler": "COSINE", "learning_rate_warmup_steps": 200.0, "epochs": 40, "lora_rank": 32, "lora_alpha": 16.0,
    "save_every": 5, "save_every_unit": "EPOCH", "sample_after": 10, "sample_after_unit": "MINUTE", "ema": "OFF",
    "ema_decay": 0.999,
    "gradient_checkpointing": "CPU_OFFLOADED", "masked_training": True,
    "masked_prior_preservation_weight": 0.4,
}  # fmt: skip
METADATA = {
    "ss_network_module": "networks.lora_flux", "ss_network_dim": "16", "ss_network_alpha": "8.0", "ss_learning_rate": "0.0001",
    "ss_unet_lr": "None", "ss_text_encoder_lr": "None",
    "ss_optimizer": "prodigyopt.prodigy.Prodigy(weight_decay=0.01,betas=(0.9, 0.99))",
    "ss_lr_scheduler": "constant", "ss_num_epochs": "8", "ss_max_train_steps": "1600", "ss_batch_size_per_device": "2",
    "ss_resolution": "(1024, 1024)", "ss_seed": "7", "ss_mixed_precision": "bf16", "ss_gradient_checkpointing": "True",
    "ss_dataset_dirs": '{"10_ohwx": {"n_repeats": 10, "img_count": 20}}', "ss_network_args": '{"loraplus_lr_ratio": "16"}',
    "ss_shuffle_caption": "False", "ss_training_comment": "trigger: ohwx", "ss_sd_model_name": "flux1-dev.safetensors",
}  # fmt: skip


def read(text: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    found = imported.read(text)
    return {kind: dict(widgets) for kind, widgets in found.nodes.items()}, {one.setting: one.why for one in found.lost}


def test_a_kohya_configuration() -> None:
    nodes, lost = read(KOHYA)
    recipe, data = nodes["ConfigureLoRA"], nodes["LoadDataset"]
    expected = {
        "name": "ink", "rank": 32, "alpha": 16.0, "conv_rank": 8, "conv_alpha": 4.0, "rank_dropout": 0.1, "targets": "all",
        "algorithm": "LoRA", "text_encoder": "none", "optimizer": "AdamW8bit",
        "optimizer_args": "weight_decay=0.1 betas=0.9,0.99",
        "learning_rate": 2e-4, "schedule": "cosine with restarts", "cycles": 3, "warmup_share": 0.05, "epochs": 10,
        "max_steps": 0,
        "save_every": 2, "precision": "bf16", "save_precision": "fp16", "weighting": "min-SNR", "snr_gamma": 5.0,
        "noise_offset": 0.05,
        "loss": "mse", "seed": 42,
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected
    assert data == {
        "resolution": 1024, "batch_size": 4, "buckets": True, "shuffle_captions": True, "keep_tokens": 1, "wildcards": True,
        "caption_lines": "alternatives", "keep_separator": "|||",
        "caption_extension": ".txt",
    }  # fmt: skip
    assert {
        "learning_rate", "max_train_steps", "resolution", "blocks_to_swap", "face_crop_aug_range", "optimizer_args broken",
        "network_args train_norm", "pretrained_model_name_or_path", "xformers", "cache_latents",
    } == lost.keys()  # fmt: skip
    assert "another computer" in lost["pretrained_model_name_or_path"] and "no counterpart" in lost["face_crop_aug_range"]


def test_a_configuration_of_kohyas_interface() -> None:
    nodes, lost = read(json.dumps({
        "LoRA_type": "LyCORIS/LoHa", "network_dim": 8, "network_alpha": 1, "optimizer": "Adafactor",
        "optimizer_args": "scale_parameter=False relative_step=False warmup_init=False", "epoch": 4, "lr_warmup": 10,
        "max_resolution": "512,512", "train_batch_size": 1, "text_encoder_lr": 5e-05, "unet_lr": 1e-4, "lr_scheduler": "constant",
        "caption_extension": ".png", "train_data_dir": "C:/x", "stop_text_encoder_training": 0,
    }))  # fmt: skip
    recipe = nodes["ConfigureLoRA"]
    assert (recipe["algorithm"], recipe["rank"], recipe["optimizer"], recipe["epochs"]) == ("LoHa", 8, "Adafactor", 4)
    assert (recipe["warmup_share"], recipe["text_encoder"], recipe["text_encoder_rate"]) == (0.1, "clip", 5e-5)
    assert recipe["optimizer_args"] == "scale_parameter=False relative_step=False warmup_init=False"
    assert "caption_extension" not in nodes["LoadDataset"] and "caption_extension" in lost


@pytest.mark.parametrize(
    ("ending", "widgets", "is_lost"),
    [("json", {"further_captions": ".json"}, False), (".TXT", {"caption_extension": ".txt"}, False), ("html", {}, True)],
)
def test_endings_of_an_ai_toolkit_dataset(ending: str, widgets: dict[str, str], is_lost: bool) -> None:
    nodes, lost = read(AI_TOOLKIT.replace("caption_ext: txt", f"caption_ext: {ending}"))
    there = {
        name: nodes["LoadDataset"][name] for name in ("further_captions", "caption_extension") if name in nodes["LoadDataset"]
    }
    assert there == widgets and ("datasets.caption_ext" in lost) == is_lost
    SubsetConfig("input/x", **there)


def test_an_ai_toolkit_job() -> None:
    nodes, lost = read(AI_TOOLKIT)
    recipe = nodes["ConfigureLoRA"]
    expected = {
        "name": "my lora", "rank": 16, "alpha": 8.0, "save_precision": "fp16", "save_every_steps": 500, "save_every": 0,
        "keep_last": 4,
        "max_steps": 4000, "accumulate": 2, "text_encoder": "none", "gradient_checkpointing": True, "noise_levels": "sigmoid",
        "optimizer": "AdamW8bit", "weight_decay": 1e-4, "learning_rate": 1e-4, "ema_decay": 0.99, "precision": "bf16",
        "base_weights": "fp8", "schedule": "constant", "sample_every_steps": 500, "mask_preservation": 0.5,
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected
    assert nodes["LoadDataset"]["resolution"] == 1024 and nodes["LoadDataset"]["caption_extension"] == ".txt"
    assert nodes["TrainLoRA"]["preview_prompt"] == "a fox\na cat with a hat" and nodes["TrainLoRA"]["preview_height"] == 768
    assert nodes["AutoCaption"] == {"trigger": "ohwx"}
    assert {
        "datasets.resolution",
        "datasets, number 2",
        "sample.sampler",
        "model.name_or_path",
        "datasets.folder_path",
    } <= lost.keys()
    assert lost["slider.positive_prompt"] == "goes into positive of a Slider Dataset node, in front of Train LoRA"


def test_an_assistant_of_an_ai_toolkit_job_has_a_way_here() -> None:
    adapter = "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"
    _, lost = read(AI_TOOLKIT.replace("is_flux: true,", f"assistant_lora_path: {adapter},"))
    assert "preview_model" in lost["model.assistant_lora_path"]


def test_a_one_trainer_configuration() -> None:
    nodes, lost = read(json.dumps(ONE_TRAINER))
    recipe = nodes["ConfigureLoRA"]
    expected = {
        "rank": 32, "alpha": 16.0, "optimizer": "Prodigy", "learning_rate": 1.0, "optimizer_args": "betas=0.9,0.99 d_coef=2.0",
        "schedule": "cosine", "warmup_steps": 200, "epochs": 40, "save_every": 5, "noise_levels": "logit-normal",
        "logit_mean": 0.0,
        "logit_std": 1.0, "base_weights": "fp8", "offload_blocks": 0.6, "gradient_checkpointing": True,
        "offload_activations": True,
        "precision": "bf16", "save_precision": "bf16", "text_encoder": "none", "mask_preservation": 0.4,
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected
    assert nodes["LoadDataset"] == {"resolution": 512, "batch_size": 2, "masks": "files"}
    assert {"learning_rate", "optimizer.fused_back_pass", "sample_after", "layer_filter", "base_model_name"} <= lost.keys()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_loras_metadata(wrapped: bool) -> None:
    nodes, lost = read(json.dumps({"__metadata__": METADATA} if wrapped else METADATA))
    recipe = nodes["ConfigureLoRA"]
    expected = {
        "rank": 16, "alpha": 8.0, "optimizer": "Prodigy", "optimizer_args": "weight_decay=0.01 betas=(0.9, 0.99)",
        "schedule": "constant",
        "epochs": 8, "max_steps": 1600, "seed": 7, "precision": "bf16", "gradient_checkpointing": True, "lora_plus_ratio": 16.0,
        "comment": "trigger: ohwx",
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected
    assert nodes["LoadDataset"] == {"resolution": 1024, "batch_size": 2, "repeats": 10, "shuffle_captions": False}
    assert "sd_model_name" in lost and "text_encoder_lr" in lost


def test_the_metadata_that_is_written_here_is_read_again() -> None:
    from lora_atelier.tests.training.runs.test_metadata import subset, told
    from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, TrainingConfig

    optimizer = OptimizerConfig("Lion", 3e-5, schedule="cosine with restarts", cycles=3)
    config = TrainingConfig("ink", NetworkConfig(24, 12.0), optimizer, seed=5, length=LengthConfig(7), comment="ohwx")
    nodes, _ = read(json.dumps(told(config, subset("input/5_fox", 6, repeats=5, batch_size=2))))
    recipe = nodes["ConfigureLoRA"]
    assert (recipe["rank"], recipe["alpha"], recipe["optimizer"], recipe["learning_rate"]) == (24, 12.0, "Lion", 3e-5)
    assert (recipe["schedule"], recipe["seed"], recipe["comment"]) == ("cosine with restarts", 5, "ohwx")
    assert nodes["LoadDataset"]["repeats"] == 5


def test_an_own_preset() -> None:
    nodes, _ = read(json.dumps({imported.OWN: 1, "name": "mine", "nodes": {"ConfigureLoRA": {"rank": 4}}}))
    assert nodes == {"ConfigureLoRA": {"rank": 4}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "this is no configuration"),
        ("hello", "this is no configuration"),
        ("[1, 2]", "this is no configuration"),
        ("{", "it is damaged"),
        ('{"a": 1}', "this is no configuration"),
        ("a: &x [1]\nb: *x", "refers to its own parts"),
        ("a: [", "neither JSON, TOML nor YAML"),
        ("!!python/object/apply:os.system ['x']", "neither JSON, TOML nor YAML"),
        (json.dumps({imported.OWN: 2, "nodes": {}}), "another version"),
        ("x" * (1 << 20) + "x", "more than"),
    ],
)
def test_what_is_none_of_them_is_refused(text: str, said: str) -> None:
    with pytest.raises(AtelierError, match=said):
        imported.read(text, "file.json")


def kohya(**settings: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe and what is lost of a configuration of sd-scripts."""
    nodes, lost = read(json.dumps({"network_module": "networks.lora", "network_dim": 8, "network_alpha": 4, **settings}))
    return nodes["ConfigureLoRA"], lost


def interface(**settings: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The same of the graphical interface."""
    nodes, lost = read(
        json.dumps({"LoRA_type": "Standard", "network_dim": 8, "network_alpha": 4, "lr_scheduler": "cosine", **settings})
    )
    return nodes["ConfigureLoRA"], lost


@pytest.mark.parametrize(
    ("length", "epochs", "steps"),
    [
        ({"epoch": 10, "max_train_epochs": 0, "max_train_steps": 0}, 10, 0),
        ({"epoch": 10, "max_train_epochs": "", "max_train_steps": 900}, None, 900),
        ({"epoch": 10, "max_train_epochs": 4, "max_train_steps": 900}, 4, 0),
    ],
)
def test_the_interfaces_length_is_what_says_something(length: dict[str, Any], epochs: int | None, steps: int) -> None:
    recipe, _ = interface(**length)
    assert (recipe.get("epochs"), recipe["max_steps"]) == (epochs, steps)


def test_what_nobody_has_written_is_what_the_trainer_takes() -> None:
    nodes, _ = read(json.dumps({"network_module": "networks.lora", "unet_lr": 1e-4}))
    assert (nodes["ConfigureLoRA"]["rank"], nodes["ConfigureLoRA"]["alpha"]) == (4, 1.0)
    nodes, _ = read(re.sub("network: .*", "network: {type: lora, linear: 32}", AI_TOOLKIT))
    assert (nodes["ConfigureLoRA"]["rank"], nodes["ConfigureLoRA"]["alpha"]) == (32, 1.0)


def test_steps_of_the_optimizer_become_batches() -> None:
    counted = {"max_train_steps": 100, "save_every_n_steps": 20, "sample_every_n_steps": 10, "gradient_accumulation_steps": 4}
    recipe, _ = kohya(**counted)
    assert [recipe[name] for name in ("max_steps", "save_every_steps", "sample_every_steps")] == [400, 80, 40]
    for word, expected in (("gradient_accumulation", [4000, 500, 500]), ("gradient_accumulation_steps", [2000, 250, 250])):
        nodes, _ = read(AI_TOOLKIT.replace("gradient_accumulation:", f"{word}:"))
        recipe = nodes["ConfigureLoRA"]
        assert [recipe[name] for name in ("max_steps", "save_every_steps", "sample_every_steps")] == expected
        assert recipe["accumulate"] == 2


@pytest.mark.parametrize(("kind", "rank"), [("Standard", None), ("Kohya LoCon", 8), ("LyCORIS/LoHa", 8), ("", 8)])
def test_convolutions_count_in_types_that_have_them(kind: str, rank: int | None) -> None:
    recipe, lost = interface(LoRA_type=kind, conv_dim=8, conv_alpha=2, epoch=1)
    assert recipe.get("conv_rank") == rank and ("targets" in recipe) == ("conv_dim" not in lost) == bool(rank)


@pytest.mark.parametrize(
    ("settings", "encoder", "rate"),
    [
        ({"learning_rate": 1e-4, "unet_lr": 2e-4}, "clip", 1e-4),
        ({"learning_rate": 1e-4, "network_train_unet_only": True}, "none", 0.0),
        ({"learning_rate": 1e-4, "text_encoder_lr": 0}, "none", 0.0),
        ({"learning_rate": 1e-4, "text_encoder_lr": "[5e-05, 5e-05]"}, "clip", 5e-5),
        ({"learning_rate": 1e-4, "network_module": "networks.lora_wan"}, "none", 0.0),
        ({"learning_rate": 1e-4, "dit": "/flux.safetensors", "network_module": "networks.lora_flux"}, "none", 0.0),
        ({"learning_rate": 1e-4, "cache_text_encoder_outputs": True}, "none", 0.0),
    ],
)
def test_the_text_encoder_is_trained_where_the_trainer_would(settings: dict[str, Any], encoder: str, rate: float) -> None:
    recipe, _ = kohya(**settings)
    assert (recipe["text_encoder"], recipe["text_encoder_rate"]) == (encoder, rate)


def test_the_interface_chooses_the_parts_by_their_rates() -> None:
    recipe, _ = interface(unet_lr=0, text_encoder_lr=5e-5, learning_rate=1e-4)
    assert (recipe["targets"], recipe["text_encoder"], recipe["text_encoder_rate"]) == ("none", "clip", 5e-5)
    recipe, _ = interface(unet_lr=1e-4, text_encoder_lr=0, learning_rate=1e-4)
    assert "targets" not in recipe and recipe["text_encoder"] == "none"
    recipe, _ = interface(unet_lr=0, text_encoder_lr=0, learning_rate=1e-4)
    assert "targets" not in recipe and (recipe["text_encoder"], recipe["text_encoder_rate"]) == ("clip", 1e-4)


def test_arguments_have_the_form_of_their_optimizer() -> None:
    for written, expected in (("eps=1e-30", "eps=1e-30,0.001"), ("eps=(1e-30, 1e-3)", "eps=1e-30,1e-3")):
        recipe, _ = kohya(optimizer_type="Adafactor", optimizer_args=[written])
        assert recipe["optimizer_args"] == expected
    recipe, _ = kohya(optimizer_type="CAME", optimizer_args=["betas=0.9,0.999", "eps=1e-30,1e-16"])
    assert recipe["optimizer_args"] == "betas=0.9,0.999,0.9999 eps1=1e-30 eps2=1e-16"


@pytest.mark.parametrize("switch", ["fp8_base", "fp8_scaled", "fp8_base_unet"])
def test_any_of_the_switches_for_eight_bits_counts(switch: str) -> None:
    switches = {"fp8_base": False, "fp8_scaled": False, "fp8_base_unet": False, switch: True}
    assert kohya(**switches)[0]["base_weights"] == "fp8"


def test_a_warmup_in_percent_counts_beside_no_steps() -> None:
    recipe, _ = interface(lr_warmup=5, lr_warmup_steps=0, epoch=1)
    assert recipe["warmup_share"] == 0.05 and "warmup_steps" not in recipe


def test_noise_levels_and_weights_do_not_undo_one_another() -> None:
    assert kohya(debiased_estimation_loss=True, weighting_scheme="none")[0]["weighting"] == "debiased"
    assert kohya(min_snr_gamma=5, weighting_scheme="uniform")[0]["weighting"] == "min-SNR"
    recipe, lost = kohya(weighting_scheme="logit_normal", logit_mean=0.5, logit_std=2, discrete_flow_shift=3)
    # Levels there are 3 u' / (1 + 2 u') with u' = 1 - sigmoid(0.5 + 2 n): a sigmoid of ln 3 - 0.5 + 2 n.
    assert (recipe["noise_levels"], recipe["logit_mean"], recipe["logit_std"]) == ("logit-normal", 0.598612, 2.0)
    assert recipe["weighting"] == "none" and "discrete_flow_shift" not in lost
    recipe, lost = kohya(timestep_sampling="sigmoid", discrete_flow_shift=3)
    assert recipe["noise_levels"] == "sigmoid" and "discrete_flow_shift" in lost


def toolkit(*changes: tuple[str, str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The job above with some of its words changed."""
    text = AI_TOOLKIT
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return read(text)


def test_denoising_steps_count_from_the_noisy_end() -> None:
    nodes, _ = toolkit(
        ("steps: 2000", "steps: 2000, min_denoising_steps: 100, max_denoising_steps: 499".replace(", ", "\n        "))
    )
    recipe = nodes["ConfigureLoRA"]
    assert (recipe["lowest_level"], recipe["highest_level"]) == (0.5, 0.9)
    nodes, _ = toolkit(("steps: 2000", "steps: 2000\n        max_denoising_steps: 1000"))
    assert nodes["ConfigureLoRA"]["lowest_level"] == 0.0


def test_a_job_that_holds_the_model_without_a_prompt() -> None:
    blank = "blank_prompt_preservation: true\n        blank_prompt_preservation_multiplier: 0.5"
    nodes, lost = toolkit(("train_unet: true", f"train_unet: true\n        {blank}"))
    recipe = nodes["ConfigureLoRA"]
    assert (recipe["preservation"], recipe["preservation_prompt"]) == (0.5, '""') and not [one for one in lost if "blank" in one]


def test_a_datasets_weight_is_its_loss_and_not_the_strength() -> None:
    nodes, lost = toolkit(("caption_ext: txt", "caption_ext: txt, network_weight: 0.5, loss_multiplier: 2.0"))
    assert nodes["LoadDataset"]["loss_weight"] == 2.0 and "datasets.network_weight" in lost
    _, lost = toolkit(("caption_ext: txt", "caption_ext: txt, network_weight: 1.0"))
    assert "datasets.network_weight" not in lost


def test_convolutions_of_an_ai_toolkit_job() -> None:
    network = ("linear_alpha: 8", "linear_alpha: 8, conv: 4, conv_alpha: 2")
    nodes, lost = toolkit(network)
    assert "conv_rank" not in nodes["ConfigureLoRA"] and {"network.conv", "network.conv_alpha"} <= lost.keys()
    nodes, lost = toolkit(network, ("is_flux", "is_xl"))
    recipe = nodes["ConfigureLoRA"]
    assert (recipe["conv_rank"], recipe["conv_alpha"], recipe["targets"]) == (4, 2.0, "all")


def test_a_lokr_of_full_rank() -> None:
    nodes, lost = toolkit(("type: lora,", "type: lokr, lokr_full_rank: true, lokr_factor: 8,"))
    recipe = nodes["ConfigureLoRA"]
    assert (recipe["algorithm"], recipe["rank"], recipe["lokr_factor"]) == ("LoKr", 1024, 8)
    assert "whole" in lost["network.lokr_full_rank"]


@pytest.mark.parametrize(
    ("written", "side", "told"),
    [
        ("[1024]", 1024, False),
        ('"1024x1024"', 1024, False),
        ('"512,1024"', 1024, True),
        ("1000", 1024, True),
        ("wide", None, True),
    ],
)
def test_sizes_however_they_are_written(written: str, side: int | None, told: bool) -> None:
    nodes, lost = toolkit(("[512, 768, 1024]", written))
    assert nodes["LoadDataset"].get("resolution") == side and ("datasets.resolution" in lost) == told
    text = json.dumps({**ONE_TRAINER, "resolution": written.strip('"[]')})
    nodes, lost = read(text)
    assert nodes["LoadDataset"].get("resolution") == side and ("resolution" in lost) == told


def one_trainer(**settings: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe and what is lost of a configuration of OneTrainer that says little."""
    little = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "lora_rank": 8, "epochs": 20}
    nodes, lost = read(json.dumps({**little, **settings}))
    return nodes["ConfigureLoRA"], lost


@pytest.mark.parametrize(
    ("settings", "encoder", "named"),
    [
        ({}, "clip", set()),
        ({"epochs": 40}, "clip", {"text_encoder.stop_training_after", "text_encoder_2.stop_training_after"}),
        ({"text_encoder": {"train": False}}, "clip", {"text_encoder.train"}),
        ({"text_encoder": {"train": False}, "text_encoder_2": {"train": False}}, "none", set()),
        ({"model_type": "FLUX_DEV_1", "text_encoder_2": {"train": False}}, "clip", set()),
        ({"model_type": "FLUX_DEV_1"}, "all", set()),
        ({"model_type": "Z_IMAGE"}, "none", set()),
    ],
)
def test_text_encoders_are_trained_unless_a_file_of_one_trainer_says_otherwise(
    settings: dict[str, Any], encoder: str, named: set[str]
) -> None:
    recipe, lost = one_trainer(**settings)
    assert recipe["text_encoder"] == encoder and {name for name in lost if name.startswith("text_encoder")} == named


def test_the_parts_say_how_memory_is_saved() -> None:
    recipe, _ = one_trainer()
    assert (recipe["gradient_checkpointing"], recipe["offload_activations"]) == (True, False)
    part = {"gradient_checkpointing": False, "activation_offloading": True, "guidance_scale": 3.5}
    # Other models' parts stand in the file as well, and say nothing.
    recipe, lost = one_trainer(unet=part, transformer={"gradient_checkpointing": True, "weight_dtype": "INT_8"})
    assert (recipe["gradient_checkpointing"], recipe["offload_activations"]) == (False, True)
    assert "unet.guidance_scale" in lost and "base_weights" not in recipe
    recipe, _ = one_trainer(gradient_checkpointing="CPU_OFFLOADED", layer_offload_fraction=0.5)
    assert (recipe["offload_blocks"], recipe["offload_activations"], recipe["gradient_checkpointing"]) == (0.5, True, True)
    recipe, _ = one_trainer(
        gradient_checkpointing="CPU_OFFLOADED", layer_offload_fraction=0.5, enable_activation_offloading=False
    )
    assert (recipe["offload_blocks"], recipe["offload_activations"]) == (0.5, False)
    recipe, _ = one_trainer(gradient_checkpointing="ON", layer_offload_fraction=0.5)
    assert "offload_blocks" not in recipe and recipe["gradient_checkpointing"] is True


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (
            {"optimizer": "ADAFACTOR", "eps": 1e-30, "eps2": 0.001, "relative_step": False, "clip_threshold": 1.0},
            "relative_step=False clip_threshold=1.0 eps=1e-30,0.001",
        ),
        (
            {"optimizer": "CAME", "beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "eps": 1e-30, "eps2": 1e-16},
            "betas=0.9,0.999,0.9999 eps1=1e-30 eps2=1e-16",
        ),
        ({"optimizer": "LION", "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}, "betas=0.9,0.99"),
        ({"optimizer": "LION_8BIT", "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}, "betas=0.9,0.99"),
        (
            {
                "optimizer": "PRODIGY_PLUS_SCHEDULE_FREE",
                "beta1": 0.9,
                "beta2": 0.99,
                "beta3": None,
                "d_coef": 0.5,
                "use_speed": True,
            },
            "betas=0.9,0.99 d_coef=0.5 use_speed=True",
        ),
        (
            {"optimizer": "MUON", "momentum": 0.9, "ns_steps": 5, "nesterov": True, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
            "momentum=0.9 nesterov=True ns_steps=5 adamw_betas=0.9,0.95 adamw_eps=1e-08",
        ),
        ({"optimizer": "SGD", "momentum": 0.9, "beta1": 0.5, "beta2": 0.5}, "momentum=0.9"),
    ],
)
def test_optimizers_of_one_trainer_get_what_they_take(optimizer: dict[str, Any], expected: str) -> None:
    from lora_atelier.training.config import optimizer_arguments

    recipe, _ = one_trainer(optimizer=optimizer)
    assert recipe["optimizer_args"] == expected
    assert optimizer_arguments.parse(recipe["optimizer_args"])


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("Lion8bit", "Lion8bit"), ("bitsandbytes.optim.lion.Lion8bit", "Lion8bit"), ("pytorch_optimizer.Muon", "Muon"),
        ("prodigyplus.ProdigyPlusScheduleFree", "ProdigyPlusScheduleFree"),
        ("prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree", "ProdigyPlusScheduleFree"),
    ],
)  # fmt: skip
def test_optimizers_of_kohya_however_they_are_named(name: str, optimizer: str) -> None:
    recipe, lost = kohya(optimizer_type=name, lr_scheduler="cosine")
    assert recipe["optimizer"] == optimizer and "optimizer_type" not in lost
    assert recipe["schedule"] == ("constant" if optimizer.endswith("ScheduleFree") else "cosine")
    assert ("schedule" in lost) == optimizer.endswith("ScheduleFree")


def test_a_prodigy_plus_that_averages_nothing_keeps_its_schedule() -> None:
    recipe, _ = kohya(
        optimizer_type="prodigyplus.ProdigyPlusScheduleFree", lr_scheduler="cosine", optimizer_args=["use_schedulefree=False"]
    )
    assert recipe["schedule"] == "cosine"


def test_the_nearest_to_automagic_finds_its_rate_as_well() -> None:
    nodes, lost = toolkit(("optimizer: adamw8bit", "optimizer: automagic"), ("lr: 1e-4", "lr: 1e-6"))
    recipe = nodes["ConfigureLoRA"]
    assert (recipe["optimizer"], recipe["learning_rate"], recipe["schedule"]) == ("ProdigyPlusScheduleFree", 1.0, "constant")
    assert "near" in lost["train.optimizer"] and "finds the rate itself" in lost["train.lr"]


def test_distributions_of_one_trainer_that_are_others_here_are_named() -> None:
    recipe, lost = one_trainer(timestep_distribution="SIGMOID", noising_weight=8.0)
    assert "noise_levels" not in recipe and {"timestep_distribution", "noising_weight, noising_bias"} <= lost.keys()
    recipe, lost = one_trainer(timestep_distribution="UNIFORM", timestep_shift=3.0)
    assert recipe["noise_levels"] == "uniform" and "shift" not in recipe and "timestep_shift" in lost
    recipe, lost = one_trainer(timestep_distribution="LOGIT_NORMAL", timestep_shift=3.0, noising_bias=-0.5)
    # 3 s / (1 + 2 s) of a sigmoid s is the sigmoid of ln 3 more.
    assert (recipe["noise_levels"], recipe["logit_mean"]) == ("logit-normal", 0.598612) and "timestep_shift" not in lost


@pytest.mark.parametrize(
    "text",
    [
        "config: " + "{a: " * 400 + "1" + "}" * 400,
        "config: " + "[" * 50_000,
        "\n".join("  " * i + "a:" for i in range(400)),
        "network_dim = 4\nunet_lr = 1\n" + ".".join("a" * 3000) + " = 1",
        json.dumps({"network_dim": 4, "unet_lr": 1})[:-1] + ', "a": ' + '{"a": ' * 90 + "1" + "}" * 90 + "}",
        "a: 1\n" + "# much\n" * 50_000,
    ],
    ids=["flow", "brackets", "block", "toml", "json", "long"],
)
def test_what_lies_too_deep_or_is_too_long_is_refused(text: str) -> None:
    with pytest.raises(AtelierError, match=r"deep|200000 characters"):
        imported.read(text)


@pytest.mark.parametrize("folders", ["[" * 100_000, '{"10_a": {"n_repeats": [1]}}', '{"10_a": {"n_repeats": {}}}'])
def test_odd_values_within_metadata_are_in_the_way_of_nothing_else(folders: str) -> None:
    assert read(json.dumps({**METADATA, "ss_dataset_dirs": folders}))[0]["ConfigureLoRA"]["rank"] == 16


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_no_value_in_any_place_breaks_it(data: st.DataObject) -> None:
    """Whatever stands behind a known name is taken, lost with a reason, or refused in a sentence."""
    start = data.draw(st.sampled_from([
        {line.split(" = ")[0]: None for line in KOHYA.splitlines() if " = " in line}, dict(ONE_TRAINER), dict(METADATA),
        {"config": {"name": "x", "process": [{part: {} for part in ("network", "save", "train", "model",
        "sample")} | {"datasets": [{}]}]}},
    ]))  # fmt: skip
    settings = {**start, "network_dim": 4, "training_method": "LORA"} if "config" not in start else start
    for name in data.draw(st.lists(st.sampled_from(sorted(settings)), max_size=4)):
        settings = {**settings, name: data.draw(VALUES)}
    try:
        found = imported.read(json.dumps(settings))
    except AtelierError:
        return
    assert all(isinstance(one.setting, str) and one.why and len(one.value) <= 210 for one in found.lost)


@pytest.mark.parametrize("word", ["train.lr", "optimizer"])
def test_numbers_are_numbers_however_they_are_written(word: str) -> None:
    text = AI_TOOLKIT if word == "train.lr" else KOHYA
    for written in ("1e-4", "0.0001", "1.0e-04"):
        nodes, _ = read(re.sub(r"(\blr: |unet_lr = )[\d.e-]+", rf"\g<1>{written}", text))
        assert nodes["ConfigureLoRA"]["learning_rate"] == 1e-4


def test_one_size_that_is_no_square_is_kept_where_there_are_no_buckets() -> None:
    def data(**changes: str) -> dict[str, Any]:
        text = KOHYA
        for setting, value in changes.items():
            text = re.sub(rf"^{setting} = .*$", f"{setting} = {value}", text, flags=re.MULTILINE)
        return read(text)[0]["LoadDataset"]

    fixed = data(enable_bucket="false")
    assert (fixed["resolution"], fixed["fixed_height"], fixed["buckets"]) == (832, 1216, False)
    assert SubsetConfig("x", **{name: fixed[name] for name in ("resolution", "fixed_height", "buckets")})
    assert "fixed_height" not in data() and "fixed_height" not in data(enable_bucket="false", resolution='"800,600"')
    none_enlarged = data(keep_tokens="1\nbucket_no_upscale = true")
    assert none_enlarged["buckets"] and none_enlarged["bucket_no_upscale"]
