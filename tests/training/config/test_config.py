"""Contradictions are refused with a sentence that names the widget."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    NoiseConfig,
    OptimizerConfig,
    SubsetConfig,
    TextConfig,
    TrainingConfig,
    check_run_name,
    from_dict,
    to_dict,
)
from lora_atelier.training.config.sampling import Sampling
from lora_atelier.training.errors import AtelierError


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LengthConfig(epochs=0), "epochs: 0 would train nothing"),
        (lambda: LengthConfig(max_steps=-1), "steps: -1"),
        (lambda: LengthConfig(save_every=-1), "save every: -1"),
        (lambda: NetworkConfig(rank=0), "rank: 0"),
        (lambda: NetworkConfig(alpha=-1), "alpha: -1"),
        (lambda: NetworkConfig(targets="everything"), "targets: 'everything' is not one of"),
        (lambda: NetworkConfig(algorithm="magic"), "algorithm: 'magic' is not one of LoRA, LoHa, LoKr"),
        (lambda: NetworkConfig(conv_rank=-1), "conv rank: -1"),
        (lambda: NetworkConfig(conv_alpha=-1), "conv alpha: -1"),
        (lambda: NetworkConfig(lokr_factor=1), "LoKr factor: 1 is neither -1 nor above 1"),
        (lambda: NetworkConfig(dropout=1), "dropout: 1 is outside 0 to 0.99"),
        (lambda: NetworkConfig(rank_dropout=-0.1), "rank dropout: -0.1"),
        (lambda: NetworkConfig(module_dropout=1), "module dropout: 1"),
        (lambda: NetworkConfig(scale_weight_norms=-1), "scale weight norms: -1"),
        (lambda: NetworkConfig(lora_plus_ratio=0.5), "LoRA+ ratio: 0.5 is outside 1 to 1024"),
        (lambda: TextConfig(dropout=-0.5), "text_encoder_dropout: -0.5 is outside 0 to 0.99; -1 takes dropout"),
        (lambda: TextConfig(dropout=1), "text_encoder_dropout: 1 is outside"),
        (
            lambda: TrainingConfig("a", network=NetworkConfig(algorithm="LoKr"), text=TextConfig("clip", dropout=0.1)),
            "text_encoder_dropout: LoKr has no bottleneck",
        ),
        (lambda: NetworkConfig(algorithm="LoHa", dropout=0.1), "dropout: LoHa has no up-matrix behind a bottleneck"),
        (lambda: NetworkConfig(algorithm="LoKr", lora_plus_ratio=16), "LoRA+ ratio: LoKr has no up-matrix"),
        (lambda: OptimizerConfig(learning_rate=0), "learning rate: 0 must be above 0"),
        (lambda: OptimizerConfig(name="Adam"), "optimizer: 'Adam'"),
        (lambda: OptimizerConfig(schedule="wild"), "schedule: 'wild'"),
        (lambda: OptimizerConfig(min_rate=1e-3), "min rate: 0.001 lies above the learning rate 0.0001"),
        (lambda: OptimizerConfig(min_rate=1e-5, min_share=0.1), "min rate: 1e-05 and a share of 0.1 contradict"),
        (lambda: OptimizerConfig(min_rate=-1), "min rate: -1"),
        (lambda: OptimizerConfig(min_share=1.1), "min rate: a share of 1.1"),
        (lambda: OptimizerConfig(warmup_steps=-1), "warmup: -1"),
        (lambda: OptimizerConfig(warmup_share=1), "warmup: a share of 1"),
        (lambda: OptimizerConfig(warmup_steps=1, warmup_share=0.1), "warmup: 1 step and a share of 0.1 contradict"),
        (lambda: OptimizerConfig(cycles=0), "cycles: 0"),
        (lambda: OptimizerConfig(cycle_steps=-1), "cycle steps: -1"),
        (lambda: OptimizerConfig(power=0), "power: 0"),
        (lambda: OptimizerConfig(accumulate=0), "accumulate: 0 batches"),
        (lambda: OptimizerConfig("Prodigy"), "learning rate: Prodigy finds the rate itself"),
        (lambda: OptimizerConfig("DAdaptAdam", 1e-3), "Set it to 1"),
        (lambda: OptimizerConfig("Prodigy", 1, optimizer_args="lr=1e-4"), "so 0.0001 would learn nothing"),
        (lambda: OptimizerConfig("DAdaptAdamW", 1, optimizer_args="decouple=False"), "choose DAdaptAdam"),
        (lambda: OptimizerConfig("AdamWScheduleFree"), "schedule: AdamWScheduleFree averages"),
        (lambda: OptimizerConfig("ProdigyPlusScheduleFree", 1), "schedule: ProdigyPlusScheduleFree averages"),
        (lambda: OptimizerConfig("ProdigyPlusScheduleFree"), "learning rate: ProdigyPlusScheduleFree finds the rate itself"),
        (lambda: OptimizerConfig("Adafactor", optimizer_args="warmup_init=True"), "needs relative_step=True"),
        (lambda: OptimizerConfig("Adafactor", optimizer_args="relative_step=True"), "schedule: with relative_step=True"),
        (lambda: OptimizerConfig(optimizer_args="lr=true"), "optimizer arguments: lr has to be a number"),
        (lambda: OptimizerConfig(optimizer_args="lr=20"), "learning rate: 20 must"),
        (lambda: OptimizerConfig(optimizer_args="weight_decay=1"), "weight decay: 1 is"),
        (lambda: OptimizerConfig(optimizer_args="decouple"), "is not of the form key=value"),
        (lambda: NoiseConfig(levels="low"), "noise levels: 'low'"),
        (lambda: NoiseConfig(logit_mean=11), "logit mean: 11"),
        (lambda: NoiseConfig(logit_std=0), "logit std: 0"),
        (lambda: NoiseConfig(sigmoid_scale=0), "sigmoid scale: 0"),
        (lambda: NoiseConfig(shift=-1), "shift: -1"),
        (lambda: NoiseConfig(lowest=0.5, highest=0.5), "noise range: 0.5 to 0.5 is no range"),
        (lambda: NoiseConfig(highest=1.1), "noise range: 0.0 to 1.1"),
        (lambda: NoiseConfig(offset=-0.1), "noise offset: -0.1"),
        (lambda: NoiseConfig(pyramid_iterations=17), "pyramid noise: 17 layers"),
        (lambda: NoiseConfig(pyramid_discount=1), "pyramid discount: 1"),
        (lambda: NoiseConfig(perturbation=2), "input perturbation: 2"),
        (lambda: NoiseConfig(offset=0.1, pyramid_iterations=6), "noise offset: pyramid noise is on as well"),
        (lambda: LossConfig("l3"), "loss: 'l3'"),
        (lambda: LossConfig(huber_schedule="linear"), "huber schedule: 'linear'"),
        (lambda: LossConfig(weighting="max-SNR"), "weighting: 'max-SNR'"),
        (lambda: LossConfig(huber_threshold=0), "huber threshold: 0"),
        (lambda: LossConfig(snr_gamma=0), "min-SNR gamma: 0"),
        (lambda: LossConfig(preservation=-1), "output preservation: -1"),
        (lambda: LossConfig(mask_preservation=-1), "mask preservation: -1"),
        (lambda: SubsetConfig("x", fixed_height=512), "fixed height: buckets choose the sizes"),
        (lambda: SubsetConfig("x", fixed_height=500, buckets=False), "fixed height: 500 is no multiple of the bucket step 64"),
        (lambda: SubsetConfig("x", fixed_height=768, buckets=False, crop="head"), "fixed height: heads are cut out square"),
        (lambda: SubsetConfig("x", bucket_no_upscale=True, buckets=False), "bucket no upscale: without buckets"),
        (lambda: NoiseConfig(level_draw="even"), "level draw: 'even' is not one of random, stratified"),
        (lambda: SubsetConfig("input/a", resolution=500), "resolution: 500 is not a multiple of the bucket step 64; try 512"),
        (lambda: SubsetConfig("input/a", batch_size=0), "batch size: 0"),
        (lambda: SubsetConfig("input/a", caption_extension="../x"), "caption extension"),
        (lambda: SubsetConfig("input/a", caption_extension=".py"), "caption extension: '.py' files are no caption files"),
        (lambda: SubsetConfig("input/a", caption_extension=".txt.html"), "caption extension: '.txt.html' files are no caption"),
        (lambda: SubsetConfig("input/a", caption_extension="x.txt"), "caption extension"),
        (lambda: SubsetConfig("input/a", caption_lines="each"), "caption lines: 'each' is not one of one text, alternatives"),
        (lambda: SubsetConfig("input/a", caption_encoding="ansi"), "caption encoding: 'ansi' is not one of detect, utf-8"),
        (lambda: SubsetConfig(""), "folder"),
        (lambda: SubsetConfig("input/a", role="spectator"), "role: 'spectator' is not one of training"),
        (lambda: SubsetConfig("input/a", caption_dropout=1), "caption dropout: 1 is outside 0 to 0.99"),
        (lambda: SubsetConfig("input/a", tag_dropout=-0.1), "tag dropout: -0.1"),
        (lambda: SubsetConfig("input/a", keep_tokens=-1), "keep tokens: -1"),
        (lambda: SubsetConfig("input/a", captions=False, shuffle_captions=True), "captions: they are off, so shuffle captions"),
        (lambda: SubsetConfig("input/a", captions=False, caption_dropout=0.1), "captions: they are off, so caption dropout"),
        (lambda: SubsetConfig("input/a", loss_weight=0), "loss weight: 0"),
        (lambda: SubsetConfig("input/a", mask_floor=1), "mask floor: 1"),
        (lambda: SubsetConfig("input/a", validation_share=1), "validation share: 1 is outside"),
        (lambda: SubsetConfig("input/a", validation_seed=-1), "validation seed: -1"),
        (lambda: SubsetConfig("input/a", role="regularisation", validation_share=0.1), "whose role is regularisation"),
        (lambda: SubsetConfig("input/a", role="validation", validation_share=0.1), "whose role is validation"),
        (lambda: SubsetConfig("input/a", masks="magic"), "masks: 'magic'"),
        (lambda: SubsetConfig("input/a", broken="ignore"), "broken: 'ignore'"),
        (lambda: TrainingConfig("a", seed=-1), "seed: -1"),
        (lambda: TrainingConfig("a", precision="fp64"), "precision: 'fp64'"),
    ],
)
def test_a_contradiction_names_its_widget(make, said):
    with pytest.raises(AtelierError) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", "a\\b", "", "  ", ".hidden", "a..b", "x" * 101, "nul", "COM1.txt", "a:b", "a\nb", "end."]
)
def test_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(AtelierError, match="name"):
        check_run_name(name)


@pytest.mark.parametrize("name", ["ink", "Ink & Lore".replace("&", "+"), "ohwx-woman_v2.1", "墨水", "  padded "])
def test_ordinary_names_pass(name):
    assert check_run_name(name) == name.strip()


@given(
    st.builds(
        TrainingConfig,
        name=st.just("a"),
        network=st.builds(NetworkConfig, rank=st.integers(1, 1024), alpha=st.floats(0, 1024)),
        optimizer=st.builds(OptimizerConfig, learning_rate=st.floats(1e-8, 10), warmup_steps=st.integers(0, 1000)),
        noise=st.builds(NoiseConfig, offset=st.floats(0, 1), shift=st.floats(0.01, 100), logit_mean=st.floats(-10, 10)),
        loss=st.builds(LossConfig, weighting=st.sampled_from(["none", "min-SNR", "cosmap"]), preservation_prompt=st.text()),
        length=st.builds(LengthConfig, epochs=st.integers(1, 1000), max_steps=st.integers(0, 1000)),
        seed=st.integers(0, 2**64 - 1),
        comment=st.text(),
    )
)
def test_every_configuration_survives_json(config):
    assert from_dict(TrainingConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_an_unknown_setting_is_not_swallowed():
    with pytest.raises(AtelierError, match="unknown setting rnak"):
        from_dict(NetworkConfig, {"rnak": 4})


def test_alpha_zero_means_the_rank():
    assert NetworkConfig(rank=8, alpha=0).scale == 1.0
    assert NetworkConfig(rank=64, alpha=32).scale == 0.5
    assert NetworkConfig(rank=64, alpha=32, rank_stabilised=True).scale == 4.0


@pytest.mark.parametrize("value", [None, 3, ["a"], 0.5])
def test_what_is_no_text_names_its_widget(value):
    for make, widget in (
        (lambda: LossConfig(preservation_prompt=value), "preservation prompt"),
        (lambda: SubsetConfig("a", class_caption=value), "class caption"),
        (lambda: SubsetConfig("a", caption_prefix=value), "caption prefix"),
        (lambda: TrainingConfig(value), "name"),
        (lambda: TrainingConfig("a", comment=value), "comment"),
        (lambda: NetworkConfig(include=value), "include"),
        (lambda: Sampling(value, "euler", "normal", 1, 1.0, 64, 64, 0), "negative"),
    ):
        with pytest.raises(AtelierError, match=f"{widget}: it was given {type(value).__name__} and no text"):
            make()


@pytest.mark.parametrize("kind", [NoiseConfig, LossConfig, LengthConfig, NetworkConfig, OptimizerConfig, TextConfig])
@pytest.mark.parametrize("value", [None, "3", float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_names_its_widget(kind, value):
    numbers = [f.name for f in dataclasses.fields(kind) if f.type in ("int", "float")]
    assert numbers
    for name in numbers:
        with pytest.raises(AtelierError, match=f"{name.replace('_', ' ')}: {value!r} is no number"):
            kind(**{name: value})
