"""What is not used or does nothing is said."""

from __future__ import annotations

import pytest
from lora_atelier.training.config import LengthConfig, OptimizerConfig, TrainingConfig
from lora_atelier.training.estimate.recipe import look_ahead
from lora_atelier.training.optim import schedules
from lora_atelier.training.optim.remarks import remarks

SILENT = [
    OptimizerConfig(),
    OptimizerConfig(schedule="constant", warmup_steps=5),
    OptimizerConfig(schedule="linear", min_rate=1e-5),
    OptimizerConfig(schedule="cosine with restarts", cycles=3),
    OptimizerConfig(schedule="annealing", cycles=2, cycle_steps=40, min_share=0.1),
    OptimizerConfig(schedule="polynomial", power=2.0),
    OptimizerConfig("Prodigy", 1.0),
    OptimizerConfig("DAdaptAdamW", 1.0),
    OptimizerConfig("AdamWScheduleFree", schedule="constant"),
    OptimizerConfig("Lion", 1e-5),
    OptimizerConfig("Lion8bit", 1e-5),
    OptimizerConfig("Muon"),
    OptimizerConfig("ProdigyPlusScheduleFree", 1.0, schedule="constant", max_grad_norm=0.0),
    OptimizerConfig("ProdigyPlusScheduleFree", 1.0, max_grad_norm=0.0, optimizer_args="use_schedulefree=false"),
    OptimizerConfig("SGD", 0.1, weight_decay=0.0),
    OptimizerConfig("Adafactor", 1e-4, schedule="constant"),
    OptimizerConfig("Adafactor", 0.01, schedule="constant", optimizer_args="scale_parameter=True"),
    OptimizerConfig("Adafactor", 0.1, schedule="constant", optimizer_args="scale_parameter=True"),
    OptimizerConfig(accumulate=4),
]


@pytest.mark.parametrize("config", SILENT)
def test_a_sound_recipe_has_no_remarks(config):
    assert remarks(config, 200, 10) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (OptimizerConfig(schedule="cosine with restarts"), "cycles: with 1, cosine with restarts never restarts"),
        (OptimizerConfig(schedule="annealing"), "cycles: with 1 and no cycle_steps, annealing is cosine"),
        (OptimizerConfig(schedule="constant", min_rate=1e-5), "min_rate: not used"),
        (OptimizerConfig(schedule="constant", min_share=0.1), "min_share: not used"),
        (OptimizerConfig(schedule="cosine", cycles=3), "cycles: not used by cosine"),
        (OptimizerConfig(schedule="linear", cycle_steps=9), "cycle_steps: not used by linear"),
        (OptimizerConfig(schedule="cosine with restarts", cycles=2, cycle_steps=9), "not used by cosine with restarts"),
        (OptimizerConfig(schedule="cosine", power=2.0), "power: not used by cosine"),
        (OptimizerConfig(schedule="polynomial"), "power: at 1 the polynomial schedule is linear"),
        (OptimizerConfig(schedule="linear", min_share=1.0), "min rate: it is the learning rate"),
        (OptimizerConfig(schedule="linear", min_rate=1e-4), "min rate: it is the learning rate"),
        (OptimizerConfig("AdamW", 1.0), "learning rate: 1 is far too high for AdamW"),
        (OptimizerConfig("AdamW", optimizer_args="lr=1"), "learning rate: 1 is far too high for AdamW"),
        (OptimizerConfig("AdamWScheduleFree", 1.0, schedule="constant"), "far too high for AdamWScheduleFree"),
        (OptimizerConfig("Lion", 5e-3), "far too high for Lion"),
        (OptimizerConfig("Lion8bit", 5e-3), "far too high for Lion8bit in most runs; 1e-5 is usual for Lion"),
        (OptimizerConfig("Muon", 0.02), "far too high for Muon in most runs; 1e-4 is usual"),
        (OptimizerConfig("ProdigyPlusScheduleFree", 1.0, schedule="constant"), "gradient clipping: off, since Prodigy"),
        (OptimizerConfig("ProdigyPlusScheduleFree", 1.0, schedule="constant", warmup_steps=9), "a warmup only puts that off"),
        (OptimizerConfig("ProdigyPlusScheduleFree", 0.01, schedule="constant"), "finds by 0.01; 1 is usual"),
        (OptimizerConfig("Adafactor", 0.03, schedule="constant"), "far too high for Adafactor in most runs; 1e-4 is usual"),
        (
            OptimizerConfig("Adafactor", 1.0, schedule="constant", optimizer_args="scale_parameter=True"),
            "far too high for Adafactor in most runs; 1e-2 is usual",
        ),
        (OptimizerConfig("Prodigy", 0.01), "multiplies the rate that it finds by 0.01; 1 is usual"),
        (OptimizerConfig("Prodigy", 1.0, schedule="cosine with restarts", cycles=2), "advise against restarts"),
        (OptimizerConfig("SGD", 0.1), "weight decay: SGD adds it to the gradient"),
        (OptimizerConfig("DAdaptAdam", 1.0), "weight decay: DAdaptAdam adds it to the gradient"),
        (OptimizerConfig(accumulate=300), "accumulate: the run has only 200 batches"),
        (OptimizerConfig(accumulate=4, warmup_steps=10), "warmup: 10 steps of the optimizer are 40 of the 200 batches"),
        (OptimizerConfig(schedule="cosine with restarts", cycles=150), "so that the rate hardly falls"),
        (OptimizerConfig(schedule="cosine with restarts", cycles=20), "cycles: 20 in 10 epochs"),
        (OptimizerConfig(schedule="annealing", cycles=8, cycle_steps=50, min_share=0.1), "after 4 of the 8 cycles"),
        (OptimizerConfig(schedule="polynomial", power=10.0), "learn next to nothing"),
    ],
)  # fmt: skip
def test_what_is_not_used_or_does_nothing_is_named(config, said):
    found = remarks(config, 200, 10)
    assert sum(said in note for note in found) == 1, found


def test_the_steps_that_learn_next_to_nothing_are_counted():
    config = OptimizerConfig(schedule="polynomial", power=10.0)
    idle = sum((1 - step / 200) ** 10 < 1e-3 for step in range(200))
    (said,) = remarks(config, 200)
    assert f"the last {idle} of 200 steps" in said and schedules.factor(config, 200 - idle - 1, 200) >= 1e-3


def test_the_panel_is_told_before_the_run():
    config = TrainingConfig("ink", optimizer=OptimizerConfig(schedule="cosine with restarts"), length=LengthConfig(epochs=2))
    for steps in (None, 10):
        (said,) = look_ahead(config, steps).notes
        assert said.startswith("cycles: with 1, cosine with restarts never restarts")
    assert look_ahead(TrainingConfig("ink"), 10).notes == ()
