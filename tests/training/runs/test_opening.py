"""Which run goes on, which begins, and when the person is asked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    NoiseConfig,
    OptimizerConfig,
    SliderConfig,
    SubsetConfig,
    TextConfig,
    TrainingConfig,
    to_dict,
)
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optim import schedules
from lora_atelier.training.runs.inputs import LENGTH, NO_MATTER, Inputs, compare, decisive
from lora_atelier.training.runs.opening import Opened, open_run
from lora_atelier.training.runs.owner import Owner
from lora_atelier.training.runs.run import Run
from lora_atelier.training.runs.state import State

MODELS = {"model": "m", "prediction": "eps", "clip": "c", "vae": "v", "start_from": ""}


def pictures(*captions: str, folder: str = "input/ink") -> Dataset:
    samples = tuple(
        Sample(Path(f"{n}.png"), 64, 64, text, hashlib.sha256(bytes([n])).hexdigest()) for n, text in enumerate(captions)
    )
    return Dataset((Subset(SubsetConfig(folder), samples, 1),))


def with_settings(dataset: Dataset, **settings: Any) -> Dataset:
    """The same pictures in a folder with other settings."""
    (subset,) = dataset.subsets
    return Dataset((dataclasses.replace(subset, config=dataclasses.replace(subset.config, **settings)),))


def in_folders(*counts: tuple[int, int]) -> Dataset:
    """Pictures 0, 1, 2, ... in folders of (pictures, repeats)."""
    samples = iter(pictures(*"abcd").subsets[0].samples)
    return Dataset(
        tuple(
            Subset(SubsetConfig(f"input/{n}"), tuple(next(samples) for _ in range(count)), repeats)
            for n, (count, repeats) in enumerate(counts)
        )
    )


class Folders:
    """Runs of a recipe called ink, made without training."""

    def __init__(self, root: Path, **settings: Any):
        self.runs, self.loras, self.dataset = root / "runs", root / "loras", pictures("a", "b")
        self.config = TrainingConfig("ink", **{"optimizer": OptimizerConfig(schedule="constant"), **settings})

    def open(
        self, total: int = 100, when: str = "continue", dataset: Dataset | None = None, models: Any = MODELS, **changed: Any
    ) -> Opened:
        config = dataclasses.replace(self.config, **changed)
        inputs = Inputs.of(config, dataset or self.dataset, models)
        self.inputs = inputs

        def same(before: int, now: int, done: int) -> bool:
            return schedules.same_so_far(config.optimizer, before, now, done)

        return open_run("ink", inputs, total, when, self.runs, self.loras, same_rates=same, width=config.optimizer.accumulate)

    def trained(self, step: int, total: int = 100, finished: bool = False, **how: Any) -> str:
        """Opens a run and leaves it as if it had been trained so far."""
        with self.open(total, **how) as opened:
            opened.run.write_inputs(self.inputs.stored())
            opened.run.write(config=to_dict(self.config), total=total)
            if step:
                opened.run.save_state(State(step, {"a": torch.zeros(1)}, {}, {}))
                opened.run.save_lora({"a": torch.zeros(1)}, {}, epoch=1, step=step, kind="last" if finished else "moment")
            return opened.run.name

    def name(self, *args: Any, **how: Any) -> str:
        with self.open(*args, **how) as opened:
            return opened.run.name


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(tmp_path)


def test_the_first_begins_and_the_next_goes_on(folders):
    with folders.open() as opened:
        assert opened.why == "ink: begins, since there is none of this name" and not opened.finished
    folders.trained(40)
    with folders.open() as opened:
        assert opened.run.name == "ink" and opened.why == "ink: goes on from step 40 of 100"
    assert folders.trained(100, finished=True) == "ink"
    with folders.open() as opened:
        assert opened.finished and opened.why == "ink: is finished and handed on as it is"


@pytest.mark.parametrize(
    "changed",
    [
        {"comment": "a word"}, {"save_precision": "fp32"}, {"gradient_checkpointing": True}, {"compile": True},
        {"offload_activations": True}, {"gradient_checkpointing": True, "offload_blocks": 0.5},
        {"length": LengthConfig(save_every=3, save_every_steps=7, keep_last=2, sample_every=2, sample_every_steps=5)},
        {"optimizer": OptimizerConfig(schedule="constant", min_rate=1e-6, cycles=3, power=2.0)},
        {"optimizer": OptimizerConfig(schedule="constant", learning_rate=3e-4, optimizer_args="lr=1e-4")},
        {"dataset": pictures("a", "b", folder="input/moved")},
        {"noise": NoiseConfig(levels="uniform", logit_mean=0.3, logit_std=2.0, sigmoid_scale=2.0, shift=2.0)},
        {"noise": NoiseConfig(levels="uniform", offset_each_channel=False, offset_random=True, pyramid_discount=0.5)},
        {"loss": LossConfig(huber_schedule="constant", huber_threshold=0.2, snr_gamma=1.0, preservation_prompt="a cat")},
        {"text": TextConfig(learning_rate=1e-6)},
        {"network": NetworkConfig(conv_rank=8, conv_alpha=2.0, lokr_factor=4)},
        {"dataset": with_settings(pictures("a", "b"), variants=2, keep_tokens=3, mask_floor=0.5, validation_seed=4)},
        {"dataset": with_settings(pictures("a", "b"), captions=False)},
        {"dataset": with_settings(pictures("a", "b"), wildcards=True, keep_separator="|||")},  # no caption has either
        {"dataset": with_settings(pictures("a", "b"), further_captions=".json", trigger_words="ohwx", dropped_caption="empty")},
    ],
)  # fmt: skip
def test_what_decides_no_weight_lets_the_run_go_on(folders, changed):
    folders.config = dataclasses.replace(folders.config, noise=NoiseConfig(levels="uniform"))
    folders.trained(40)
    with folders.open(**changed) as opened:
        assert opened.why == "ink: goes on from step 40 of 100"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "seed is 1 now and was 0"),
        ({"precision": "fp32"}, "precision is fp32 now and was auto"),
        ({"optimizer": OptimizerConfig(schedule="constant", learning_rate=5e-5)}, "learning_rate is 5e-05 now and was 0.0001"),
        ({"network": NetworkConfig(rank=8)}, "rank is 8 now and was 16"),
        ({"optimizer": OptimizerConfig("Lion", schedule="constant")}, "another: optimizer is Lion now and was AdamW"),
        (
            {"optimizer": OptimizerConfig(schedule="constant", learning_rate=1.0000001e-4)},
            "learning_rate is 0.00010000001 now and was 0.0001",
        ),
        ({"noise": NoiseConfig(levels="shifted")}, "another: noise_levels is shifted now and was auto"),
        ({"loss": LossConfig("huber")}, "another: loss is huber now and was mse"),
        ({"text": TextConfig("clip", learning_rate=1e-5)}, "another: text_encoder is clip now and was none"),
        ({"models": {**MODELS, "model": "other"}}, "the model is another"),
        ({"models": {**MODELS, "vae": "other"}}, "the VAE is another"),
        ({"dataset": Dataset((dataclasses.replace(pictures("a", "b").subsets[0], repeats=5),))}, "repeats is 5 now and was 1"),
        ({"dataset": pictures()}, "ink was trained on other pictures"),
    ],
)
def test_another_experiment_begins_beside_it_and_says_why(folders, changed, said):
    folders.trained(40)
    with folders.open(**changed) as opened:
        assert opened.run.name == "ink-2" and opened.why.startswith("ink-2: begins, since ink ") and said in opened.why
    assert folders.name() == "ink", "and the first can still go on"


def test_the_state_of_a_run_that_trained_nothing_yet_is_in_nobodys_way(folders):
    folders.trained(0)
    with folders.open(seed=5) as opened:
        assert opened.run.name == "ink" and "had not come to its first save" in opened.why


@pytest.mark.parametrize("done", [40, 100])
def test_a_run_becomes_longer_where_its_rates_stay(folders, done):
    folders.trained(done, finished=done == 100)
    with folders.open(150) as opened:
        assert opened.run.name == "ink" and not opened.finished
        assert opened.why == f"ink: goes on from step {done} of 150 (it was to have 100)"


def test_a_schedule_that_has_fallen_is_asked_about(tmp_path):
    folders = Folders(tmp_path, optimizer=OptimizerConfig(schedule="cosine"))
    folders.trained(100, finished=True)
    with pytest.raises(AtelierError, match=r"rates of these steps would have been others.*'continue with the changes'"):
        folders.open(150)
    with folders.open(150, "continue with the changes") as opened:
        assert opened.run.name == "ink" and opened.changes == "150 steps instead of 100"
    with folders.open(150, "start over") as opened:
        assert opened.run.name == "ink-2"


def test_a_shorter_run_is_another(folders):
    folders.trained(100, finished=True)
    with folders.open(50) as opened:
        assert opened.run.name == "ink-2" and "ink is longer (100 steps)" in opened.why


def test_a_group_of_batches_that_was_cut_short_is_asked_about(tmp_path):
    folders = Folders(tmp_path, optimizer=OptimizerConfig(schedule="constant", accumulate=3))
    folders.trained(100, finished=True)
    with pytest.raises(AtelierError, match="within a group of batches"):
        folders.open(150)
    assert folders.name(150, "continue with the changes") == "ink"


def test_a_run_that_was_ended_early_goes_on_if_that_is_wanted(folders):
    folders.trained(40, finished=True)
    with folders.open() as opened:
        assert opened.finished and "ended at step 40 of 100" in opened.why
    with folders.open(when="continue with the changes") as opened:
        assert not opened.finished and opened.why == "ink: goes on from step 40 of 100, where it was ended"


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (pictures("a", "mended"), r"another caption: 1\.png"),
        (pictures("a", "b", "new"), r"1 picture added \(2\.png\)"),
        (pictures("a"), r"1 picture gone \(1\.png\)"),
        (pictures("x", "y"), r"another caption: 0\.png, 1\.png"),
        (
            Dataset((dataclasses.replace(pictures("a", "b").subsets[0], samples=pictures("a", "b").subsets[0].samples[::-1]),)),
            "in another order",
        ),
    ],
)
def test_a_dataset_that_changed_is_named_and_asked_about(folders, now, said):
    folders.trained(40)
    with pytest.raises(
        AtelierError, match=rf"dataset: since ink was trained up to step 40: .*{said}.*'continue with the changes'"
    ):
        folders.open(dataset=now)
    with folders.open(when="continue with the changes", dataset=now) as opened:
        assert opened.run.name == "ink" and opened.why.startswith("ink: goes on from step 40 of 100 with what has changed: ")
    assert folders.name(when="start over", dataset=now) == "ink-2"


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (((4, 1),), ((2, 1), (2, 10)), "repeats of folder 2 is 10 now and was 1"),
        (((4, 1),), ((2, 1), (2, 1)), "the pictures are in other folders"),
        (((2, 1), (2, 5)), ((3, 1), (1, 5)), "the pictures are in other folders"),
        (((2, 1), (2, 5)), ((4, 1),), "repeats is 1 now and was 5"),
    ],
)
def test_the_same_pictures_in_other_folders_are_no_finished_run(tmp_path, then, now, said):
    """They are seen more or less often, and in other batches."""
    folders = Folders(tmp_path)
    folders.dataset = in_folders(*then)
    folders.trained(100, finished=True)
    inputs = Inputs.of(folders.config, in_folders(*now), MODELS)
    assert said in str(compare(folders.inputs, inputs))
    try:
        with folders.open(dataset=in_folders(*now)) as opened:
            assert opened.run.name == "ink-2"
    except AtelierError as error:
        assert said in str(error)


def test_changes_that_no_state_fits_are_refused_by_name(folders):
    folders.trained(40)
    with pytest.raises(AtelierError, match="cannot go on with the changes: rank is 8 now and was 16"):
        folders.open(when="continue with the changes", network=NetworkConfig(rank=8))
    assert folders.name(when="continue with the changes", seed=3) == "ink"
    assert folders.name(when="continue with the changes", network=NetworkConfig(dropout=0.1)) == "ink"


def test_the_newest_of_two_alike_goes_on(folders):
    folders.trained(40)
    assert folders.trained(20, when="start over") == "ink-2"
    assert folders.name() == "ink-2"


def test_a_recipe_whose_own_name_ends_in_a_number_is_left_alone(folders):
    folders.config = dataclasses.replace(folders.config, name="ink-2")
    run = Run("ink-2", folders.runs, folders.loras)
    run.write(config=to_dict(folders.config), total=100)
    folders.config = dataclasses.replace(folders.config, name="ink")
    folders.trained(40)
    assert folders.name(when="start over") == "ink-3"
    assert folders.name(when="continue with the changes", seed=4) == "ink"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"[" * 100_000, b'{"saved": [{"file": "../../victim.txt"}]}', b"\xff"])
def test_a_damaged_run_is_set_aside_and_in_nobodys_way(folders, damage):
    folders.trained(40)
    (folders.runs / "ink" / "run.json").write_bytes(damage)
    with folders.open() as opened:
        assert opened.run.name == "ink-2" and "ink is set aside: run.json: " in opened.why
    assert (folders.runs / "ink" / "run.json").read_bytes() == damage


def test_inputs_read_back_are_the_same(folders):
    inputs = Inputs.of(folders.config, pictures("a", "\udcff b", "日本"), MODELS)
    assert not compare(Inputs.read(json.loads(inputs.stored())), inputs)


def test_a_setting_of_tomorrow_does_not_make_todays_run_another(folders):
    folders.trained(40)
    path = folders.runs / "ink" / "inputs.json"
    stored = json.loads(path.read_text())
    del stored["settings"]["noise.offset"]
    del stored["subsets"][0]["settings"]["flip"]
    path.write_text(json.dumps(stored))
    assert folders.name() == "ink"


EARLIER = (  # settings that were there, settings that are new, what changes of them
    ({"shuffle_captions": True}, {"trigger_words": "ohwx"}, "trigger_words is ohwx now and was empty"),
    (
        {"caption_dropout": 0.1}, {"trigger_words": "ohwx", "dropped_caption": "trigger words"},
        "dropped_caption is trigger words now and was empty",
    ),
    ({"masks": "files"}, {"mask_floor": 0.3}, "mask_floor is 0.3 now and was 0.1"),
    ({"crop": "head"}, {"head_margin": 0.5}, "head_margin is 0.5 now and was 0.75"),
    ({"crop": "random"}, {"variants": 2}, "variants is 2 now and was 4"),
    ({"buckets": False}, {"fixed_height": 768}, "fixed_height is 768 now and was 0"),
    ({}, {"bucket_no_upscale": True}, "bucket_no_upscale is True now and was False"),
    ({}, {"wildcards": True}, "wildcards is True now and was False"),
    ({}, {"keep_separator": "|||"}, "keep_separator is ||| now and was empty"),
    ({}, {"slider": SliderConfig(positive="old", negative="young")}, "slider is "),
)  # fmt: skip


@pytest.mark.parametrize(("there", "new", "said"), EARLIER)
def test_a_setting_that_an_earlier_version_did_not_have_had_todays_default(folders, there, new, said):
    captions = pictures("a {red|blue} cat ||| ohwx", "b")
    stored = json.loads(Inputs.of(folders.config, with_settings(captions, **there), MODELS).stored())
    for name in new:
        del stored["subsets"][0]["settings"][name]
    before = Inputs.read(stored)
    assert not compare(before, Inputs.of(folders.config, with_settings(captions, **there), MODELS))
    difference = compare(before, Inputs.of(folders.config, with_settings(captions, **there, **new), MODELS))
    assert any(one.startswith(said) for one in difference.settings)


def test_so_had_a_setting_of_the_recipe_that_only_counts_beside_another():
    config = TrainingConfig("ink", optimizer=OptimizerConfig(schedule="polynomial", power=2.0))
    stored = json.loads(Inputs.of(config, pictures("a"), MODELS).stored())
    del stored["settings"]["optimizer.power"]
    assert compare(Inputs.read(stored), Inputs.of(config, pictures("a"), MODELS)).settings == ("power is 2 now and was 1",)
    text = TrainingConfig("ink", text=TextConfig("clip"))
    stored = json.loads(Inputs.of(text, pictures("a"), MODELS).stored())
    del stored["settings"]["text.dropout"]
    assert not compare(Inputs.read(stored), Inputs.of(text, pictures("a"), MODELS))
    other = Inputs.of(TrainingConfig("ink", text=TextConfig("clip", dropout=0.1)), pictures("a"), MODELS)
    found = compare(Inputs.read(stored), other)
    assert found.settings == ("text_encoder_dropout is 0.1 now and was -1",) and not found.unfit
    alone = TrainingConfig("ink", text=TextConfig(dropout=0.1))
    assert not compare(Inputs.of(TrainingConfig("ink"), pictures("a"), MODELS), Inputs.of(alone, pictures("a"), MODELS))


def test_every_field_of_a_recipe_is_sorted():
    """A new field has to be thought about: by default it decides."""
    flat = {*decisive(TrainingConfig("ink")), *NO_MATTER, *LENGTH}
    config = to_dict(TrainingConfig("ink"))
    names = {f"{k}.{inner}" for k, v in config.items() if isinstance(v, dict) for inner in v}
    assert flat == names | {k for k, v in config.items() if not isinstance(v, dict)}


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine", "cosine with restarts", "annealing", "polynomial"]),
    warmup=st.integers(0, 5), cycle=st.integers(0, 10), before=st.integers(12, 30), more=st.integers(1, 30),
    done=st.integers(1, 12),
)  # fmt: skip
def test_rates_are_the_same_where_every_one_of_them_is(schedule, warmup, cycle, before, more, done):
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup, cycle_steps=cycle, min_share=0.1)
    rates = [[schedules.factor(config, step, total) for step in range(done)] for total in (before, before + more)]
    assert schedules.same_so_far(config, before, before + more, done) == (rates[0] == rates[1])
    if schedule == "constant" or (schedule == "annealing" and cycle):
        assert rates[0] == rates[1]


def test_what_a_killed_run_was_writing_goes_when_it_is_opened_again(folders):
    folders.trained(40)
    run = Run("ink", folders.runs, folders.loras)
    before = {p for p in folders.runs.parent.rglob("*") if p.is_file()}
    for path in (run.folder / "run.json", run.folder / "state" / "state.safetensors", run.lora_folder / "ink-000001.safetensors"):
        path.with_name(f"{path.name}.0a1b2c3d.partial").write_text("hal")
    theirs = run.lora_folder / "download.partial"
    theirs.write_text("of somebody else")
    folders.name()
    assert {p for p in folders.runs.parent.rglob("*") if p.is_file()} == before | {theirs}


HOLDER = """
import sys, time
from types import ModuleType
from pathlib import Path
sys.modules["lora_atelier"] = pack = ModuleType("lora_atelier")
pack.__path__ = [{pack!r}]
from lora_atelier.training.runs.owner import Owner
owner = Owner(Path({folder!r}))
owner.take()
print("taken", flush=True)
time.sleep(600)
"""


def test_a_run_has_one_owner_and_a_dead_ones_can_be_taken_over(folders):
    folders.trained(40)
    folder = folders.runs / "ink"
    code = HOLDER.format(pack=str(Path(__file__).parents[3]), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "taken\n"
            with pytest.raises(
                AtelierError, match=rf"ink is being trained right now by another ComfyUI \(process {other.pid} on"
            ):
                folders.open()
            assert folders.name(when="start over") == "ink-2", "another run is free"
        finally:
            other.kill()
            other.wait()
    assert folders.name() == "ink"


def test_a_run_that_is_let_go_can_be_taken_again(folders):
    for _ in range(2):
        owner = Owner(folders.runs / "ink")
        owner.take()
        owner.release()
        owner.release()


def test_an_owner_that_cannot_sign_has_it_all_the_same(tmp_path):
    (tmp_path / "ink" / "owner.lock.json").mkdir(parents=True)
    first, second = Owner(tmp_path / "ink"), Owner(tmp_path / "ink")
    first.take()
    with pytest.raises(AtelierError, match="trained right now by another ComfyUI"):
        second.take()
    first.release()
    second.take()
    second.release()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "ink").write_text("a file")
    with pytest.raises(AtelierError, match=r"ink cannot be written \(.*\). Make it writable, or choose another name"):
        Owner(tmp_path / "ink").take()


@pytest.mark.parametrize("name", ["history.jsonl", "measured.jsonl", "owner.lock", "state", "samples"])
@pytest.mark.parametrize("kind", ["other", "link"])
def test_a_run_with_something_else_in_a_files_place_is_set_aside(folders, name, kind, tmp_path):
    folders.trained(40)
    path = folders.runs / "ink" / name
    path.is_dir() and path.rename(tmp_path / "away")
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    elif "." in name:
        path.mkdir()
    else:
        path.write_bytes(b"")
    with folders.open() as opened:
        assert opened.why.startswith(f"ink-2: begins, since ink is set aside: {name}: this is no ")
    assert not (tmp_path / "nowhere").exists()


def test_what_a_new_run_is_compared_with_is_what_is_most_like_it(folders):
    folders.trained(40)
    folders.trained(40, seed=1, network=NetworkConfig(rank=8))
    with folders.open(seed=2) as opened:
        assert opened.why == "ink-3: begins, since ink is another: seed is 2 now and was 0"


def test_another_recipes_run_is_no_reason(folders):
    Run("ink-2", folders.runs, folders.loras).write(config={"name": "ink-2"})
    with folders.open() as opened:
        assert opened.why == "ink: begins, since there is none of this name"
    Run("ink", folders.runs, folders.loras).write(config={"name": "other"})
    with folders.open() as opened:
        assert opened.why == "ink-3: begins, since ink is a run of another recipe"


def test_a_finished_run_is_not_said_to_go_on_without_more_steps(folders):
    folders.trained(100, finished=True)
    with pytest.raises(AtelierError, match=r"another caption: 1.png.*raise epochs or max_steps and set when_interrupted"):
        folders.open(dataset=pictures("a", "c"))
    assert folders.name(120, when="continue with the changes", dataset=pictures("a", "c")) == "ink"


def test_a_run_whose_length_was_not_noted_is_asked_about(folders):
    folders.trained(40)
    run = Run("ink", folders.runs, folders.loras)
    run.write(total=None)
    with pytest.raises(AtelierError, match=r"ink does not say how many steps it was to have.*'continue with the changes'"):
        folders.open()
    assert folders.name(when="continue with the changes") == "ink"


@pytest.mark.parametrize("left", [60, 0])
def test_a_finished_run_of_which_an_older_state_is_left_is_finished(folders, left):
    """The state says where it could go on; how far it came says its last file."""
    folders.trained(100, finished=True)
    state = folders.runs / "ink" / "state" / "state.safetensors"
    state.unlink()
    run = Run("ink", folders.runs, folders.loras)
    if left:
        run.save_state(State(left, {"a": torch.zeros(1)}, {}, {}))
    for when in ("continue", "continue with the changes"):
        with folders.open(when=when) as opened:
            assert opened.finished and opened.why == "ink: is finished and handed on as it is"


def test_an_early_end_without_a_state_is_handed_on(folders):
    folders.trained(60, finished=True)
    (folders.runs / "ink" / "state" / "state.safetensors").unlink()
    for when in ("continue", "continue with the changes"):
        with folders.open(when=when) as opened:
            assert opened.finished and opened.why == "ink: is finished and handed on as it is"


def without_state(folders: Folders, name: str = "ink") -> None:
    for path in (folders.runs / name / "state").iterdir():
        path.unlink()


@pytest.mark.parametrize("when", ["continue", "continue with the changes"])
def test_a_last_file_that_is_gone_is_asked_about(folders, when):
    folders.trained(100, finished=True)
    file = folders.loras / "ink" / "ink.safetensors"
    away = folders.runs.parent / "mine.safetensors"
    file.rename(away)
    assert folders.name(when=when) == "ink", "its state writes it again"
    without_state(folders)
    with pytest.raises(AtelierError, match=r"ink\.safetensors is gone from .*Put the file back there.*'start over'"):
        folders.open(when=when)
    with pytest.raises(AtelierError, match=r"since ink was trained: another caption: 1\.png"):
        folders.open(dataset=pictures("a", "mended"))
    assert folders.name(50) == "ink-2", "a shorter run is another"
    assert folders.name(when="start over") == "ink-2"
    away.rename(file)
    with folders.open(when=when) as opened:
        assert opened.finished and opened.run.name == "ink"


def test_an_interrupted_run_whose_state_was_deleted_is_not_trained_over(folders):
    folders.trained(40)
    without_state(folders)
    with folders.open() as opened:
        assert opened.why == "ink-2: begins, since of ink no state was kept, and its files stay"
    (folders.loras / "ink" / "ink-step00000040.safetensors").unlink()
    with folders.open() as opened:
        assert opened.why == "ink: begins again, since no state of it was kept"


@pytest.mark.parametrize("when", ["continue", "continue with the changes"])
def test_mended_captions_start_no_training_where_no_state_was_kept(folders, when):
    folders.trained(100, finished=True)
    without_state(folders)
    with pytest.raises(AtelierError, match=r"since ink was trained: another caption: 1\.png.*'start over'.*start_from"):
        folders.open(when=when, dataset=pictures("a", "mended"))
    assert folders.name(when="start over", dataset=pictures("a", "mended")) == "ink-2"
    assert folders.name(dataset=pictures("a", "mended"), seed=4) == "ink-2", "another experiment is none of mended captions"


def test_an_older_run_does_not_go_on_in_place_of_the_one_that_is_meant(folders):
    folders.config = dataclasses.replace(folders.config, seed=1)
    folders.trained(40)
    folders.config = dataclasses.replace(folders.config, seed=0)
    assert folders.trained(100, finished=True) == "ink-2"
    without_state(folders, "ink-2")
    with pytest.raises(AtelierError, match="ink-2 ended at step 100, and what it needs to go on was not kept"):
        folders.open(150, when="continue with the changes")
    assert folders.name(150, when="continue with the changes", seed=1) == "ink"


def test_what_was_due_at_the_end_is_done_when_it_is_queued_again(folders):
    folders.trained(100, finished=True)
    run = Run("ink", folders.runs, folders.loras)
    run.save_state(State(100, {"a": torch.zeros(1)}, {}, {}, due=True))
    with folders.open() as opened:
        assert not opened.finished
        assert opened.why == "ink: goes on after step 100 of 100, since what belongs to its end was not done"
    run.save_lora({"a": torch.zeros(1)}, {}, epoch=1, step=60, kind="last")
    run.save_state(State(60, {"a": torch.zeros(1)}, {}, {}, due=True))
    with folders.open() as opened:
        assert opened.finished, "a run that was ended early stays ended"
