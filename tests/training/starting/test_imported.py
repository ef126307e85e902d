"""Configurations of other trainers, by the names and forms that those trainers give them, read into widgets' values."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
        dtype: bf16
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
        "resolution": 1024, "batch_size": 4, "buckets": True, "shuffle_captions": True, "keep_tokens": 1,
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


def test_an_ai_toolkit_job() -> None:
    nodes, lost = read(AI_TOOLKIT)
    recipe = nodes["ConfigureLoRA"]
    expected = {
        "name": "my lora", "rank": 16, "alpha": 8.0, "save_precision": "fp16", "save_every_steps": 250, "save_every": 0,
        "keep_last": 4,
        "max_steps": 4000, "accumulate": 2, "text_encoder": "none", "gradient_checkpointing": True, "noise_levels": "sigmoid",
        "optimizer": "AdamW8bit", "weight_decay": 1e-4, "learning_rate": 1e-4, "ema_decay": 0.99, "precision": "bf16",
        "base_weights": "fp8", "schedule": "constant", "sample_every_steps": 250,
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


def test_a_one_trainer_configuration() -> None:
    nodes, lost = read(json.dumps(ONE_TRAINER))
    recipe = nodes["ConfigureLoRA"]
    expected = {
        "rank": 32, "alpha": 16.0, "optimizer": "Prodigy", "learning_rate": 1.0, "optimizer_args": "betas=0.9,0.99 d_coef=2.0",
        "schedule": "cosine", "warmup_steps": 200, "epochs": 40, "save_every": 5, "noise_levels": "logit-normal",
        "logit_mean": 0.0,
        "logit_std": 1.0, "base_weights": "fp8", "offload_blocks": 0.6, "gradient_checkpointing": True,
        "offload_activations": True,
        "precision": "bf16", "save_precision": "bf16", "text_encoder": "none",
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
        "epochs": 8, "max_steps": 0, "seed": 7, "precision": "bf16", "gradient_checkpointing": True, "lora_plus_ratio": 16.0,
        "comment": "trigger: ohwx",
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected
    assert nodes["LoadDataset"] == {"resolution": 1024, "batch_size": 2, "repeats": 10, "shuffle_captions": False}
    assert "sd_model_name" in lost


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
