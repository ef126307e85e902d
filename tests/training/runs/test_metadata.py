"""The metadata of LoRA files against kohya's definitions, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    NoiseConfig,
    OptimizerConfig,
    SubsetConfig,
    TrainingConfig,
)
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset
from lora_atelier.training.runs.card import Card
from lora_atelier.training.runs.metadata import describe


def subset(folder: str, count: int, *, repeats: int = 1, captions: str = "Fox, red", **settings) -> Subset:
    pictures = tuple(
        Sample(Path(f"{folder}/{i}.png"), 64, 64, captions, f"{folder} {i}") for i in range(count)
    )  # fmt: skip
    return Subset(SubsetConfig(folder, 64, bucket_step=32, **settings), pictures, repeats)


def told(config: TrainingConfig | None = None, *subsets: Subset, total: int = 0, **more) -> dict[str, str]:
    dataset = Dataset(subsets or (subset("input/5_fox", 6, repeats=5, batch_size=2),))
    plan = Plan(dataset, 0)
    config = config or TrainingConfig("ink")
    total = total or 10 * plan.steps_per_epoch
    given = {"family": "SD15", "prediction": "eps", "epoch": 10, "step": total, "graph": {}, **more}
    return describe(config, dataset, plan, total_steps=total, **given)


def test_steps_are_the_optimizers_and_batches_are_batches():
    """6 pictures x 5 at batch 2 are 15 batches an epoch; 10 epochs at 4 batches a step are ceil(150 / 4) = 38 steps."""
    config = TrainingConfig("ink", optimizer=OptimizerConfig(accumulate=4, warmup_share=0.1))
    found = told(config)
    assert found["ss_num_batches_per_epoch"] == "15" and found["ss_num_train_images"] == "30"
    assert found["ss_max_train_steps"] == found["ss_steps"] == "38" and found["lora_atelier.step"] == "150"
    assert found["ss_lr_warmup_steps"] == str(round(0.1 * 38)) and found["ss_num_epochs"] == "10"
    assert found["ss_gradient_accumulation_steps"] == "4"
    half = told(config, step=61, epoch=5)
    assert half["ss_steps"] == "15" and half["lora_atelier.step"] == "61"
    fixed = told(TrainingConfig("ink", optimizer=OptimizerConfig(accumulate=4, warmup_steps=7)))
    assert fixed["ss_lr_warmup_steps"] == "7"
    cut = told(TrainingConfig("ink", length=LengthConfig(max_steps=16)), total=16)
    assert (cut["ss_num_epochs"], cut["ss_max_train_steps"]) == ("2", "16")


def test_pictures_are_counted_as_they_lie_in_their_folders():
    found = told(
        None,
        subset("input/2_fox", 5, repeats=2, validation_share=0.2),
        subset("input/reg/1_animal", 3, role="regularisation", loss_weight=0.5),
    )
    assert found["ss_num_train_images"] == "8" and found["ss_num_validation_images"] == "1", "4 of 5 pictures x 2"
    assert found["ss_num_reg_images"] == "3", "before they are cycled to as many as are trained"
    assert found["ss_prior_loss_weight"] == "0.5"
    assert json.loads(found["ss_dataset_dirs"]) == {"2_fox": {"n_repeats": 2, "img_count": 4}}
    assert json.loads(found["ss_reg_dataset_dirs"]) == {"1_animal": {"n_repeats": 1, "img_count": 3}}
    trained, prior = json.loads(found["ss_datasets"])
    assert (trained["num_train_images"], trained["num_reg_images"]) == (8, 0)
    assert (prior["num_train_images"], prior["num_reg_images"]) == (0, 3)
    assert (trained["subsets"][0]["img_count"], trained["subsets"][0]["image_dir"]) == (4, "2_fox")
    assert trained["bucket_info"] == {"buckets": {"0": {"resolution": [64, 64], "count": 8}}}


def test_tags_are_counted_in_lower_case_by_folder_and_a_folder_once():
    found = told(
        None,
        subset("input/25_ohwx fox", 2, repeats=25),
        subset("input/owl", 2, repeats=3, captions="Owl"),
        subset("input/owl", 2, repeats=3, captions="Owl", batch_size=2),
        subset("datasets/owl", 1, repeats=3, captions="owl, snow"),
    )
    assert json.loads(found["ss_tag_frequency"]) == {"25_ohwx fox": {"fox": 2, "red": 2}, "3_owl": {"owl": 3, "snow": 1}}
    assert list(json.loads(found["ss_dataset_dirs"])) == ["25_ohwx fox", "owl", "owl (2)", "owl (3)"]


@pytest.mark.parametrize(
    ("family", "prediction", "expected"),
    [
        ("SD15", "eps", ("sd_v1", None, "stable-diffusion-v1/lora", "epsilon", "networks.lora")),
        ("SD15", "v", ("sd_v1_v", None, "stable-diffusion-v1/lora", "v", "networks.lora")),
        ("SD20", "eps", ("sd_v2", "True", "stable-diffusion-v2-512/lora", "epsilon", "networks.lora")),
        ("SD20", "v", ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "v", "networks.lora")),
        ("SDXL", "eps", ("sdxl_base_v1-0", None, "stable-diffusion-xl-v1-base/lora", "epsilon", "networks.lora")),
        ("Flux", "flow", ("flux1", None, "flux-1-dev/lora", None, "networks.lora_flux")),
        ("FluxSchnell", "flow", ("flux1", None, "flux-1-schnell/lora", None, "networks.lora_flux")),
        ("SD3", "flow", ("sd3", None, "stable-diffusion-3/lora", None, "networks.lora_sd3")),
        ("QwenImage", "flow", ("qwen_image", None, "Qwen-Image/lora", None, None)),
        ("Tomorrow", "flow", (None, None, "tomorrow/lora", None, None)),
    ],
)
def test_a_model_is_named_as_kohyas_tools_name_it_and_else_not_at_all(family, prediction, expected):
    found = told(family=family, prediction=prediction)
    keys = "ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.prediction_type", "ss_network_module"
    assert tuple(found.get(key) for key in keys) == expected and found["lora_atelier.family"] == family


def test_values_are_written_as_kohyas_tools_write_them():
    config = TrainingConfig(
        "ink",
        optimizer=OptimizerConfig(schedule="cosine with restarts", cycles=2),
        loss=LossConfig("smooth-l1", weighting="debiased"),
        noise=NoiseConfig(offset=0.1, offset_random=True),
    )
    found = told(config, precision="fp32")
    assert (found["ss_loss_type"], found["ss_huber_schedule"], found["ss_huber_c"]) == ("smooth_l1", "snr", "0.1")
    assert found["ss_lr_scheduler"] == "cosine_with_restarts" and found["ss_mixed_precision"] == "no"
    assert (found["ss_debiased_estimation"], found["ss_gradient_checkpointing"]) == ("True", "False")
    assert found["ss_noise_offset_random_strength"] == "True"
    plain = told(precision="bf16")
    assert (plain["ss_loss_type"], plain["ss_mixed_precision"]) == ("l2", "bf16") and "ss_huber_c" not in plain
    assert "ss_mixed_precision" not in told() and "ss_network_args" not in told()
    warm = told(TrainingConfig("ink", optimizer=OptimizerConfig(schedule="constant", warmup_steps=3)))
    low = told(TrainingConfig("ink", optimizer=OptimizerConfig(min_share=0.1)))
    assert (warm["ss_lr_scheduler"], low["ss_lr_scheduler"]) == ("constant_with_warmup", "cosine_with_min_lr")


def test_rank_and_alpha_are_the_layers_own():
    assert (told()["ss_network_dim"], told()["ss_network_alpha"]) == ("16", "16.0")
    assert told(TrainingConfig("ink", network=NetworkConfig(8, 0.0)))["ss_network_alpha"] == "8.0"
    ruled = TrainingConfig("ink", network=NetworkConfig(8, 8.0, rules="a.* rank=4"))
    found = told(ruled, sizes=[(8, 8.0), (4, 4.0)])
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    taken = TrainingConfig("ink", network=NetworkConfig(8, 8.0, start_from="old.safetensors"))
    found = told(taken, sizes=[(32, 16.0), (32, 16.0)])
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("32", "16.0")
    assert json.loads(told(TrainingConfig("ink", network=NetworkConfig(conv_rank=4, targets="all")))["ss_network_args"]) == {
        "conv_dim": "4"
    }


def test_the_resolution_is_that_of_what_is_trained():
    prior = subset("input/reg", 2, role="regularisation")
    larger = Subset(SubsetConfig("input/reg", 1024, role="regularisation"), prior.samples, 1)
    assert told(None, subset("input/fox", 2), larger)["modelspec.resolution"] == "64x64"


def test_a_file_is_called_as_its_run_is_and_not_as_the_recipe():
    card = Card(title="Ink and lore")
    plain, second, titled = told(), told(name="ink-2"), told(name="ink-2", card=card)
    assert (plain["ss_output_name"], plain["modelspec.title"]) == ("ink", "ink")
    assert (second["ss_output_name"], second["modelspec.title"]) == ("ink-2", "ink-2")
    assert (titled["ss_output_name"], titled["modelspec.title"]) == ("ink-2", "Ink and lore")
