"""Sliders: one LoRA with two directions, learnt between two prompts or from pairs of pictures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_atelier.training import loop
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    SliderConfig,
    SubsetConfig,
    TextConfig,
)
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.images import open_picture, to_unit
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.sliders import slider_of
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.estimate.step_time import circumstances
from lora_atelier.training.network.flat import FlatParameters
from lora_atelier.training.step import form_of
from PIL import Image
from safetensors import safe_open

from .performance.test_recorded_runs import recorder  # noqa: F401
from .test_engine import only_training_checks
from .test_job import Stop, fresh_folders, go, interrupt, recipe  # noqa: F401

AGE = SliderConfig(target="a person", positive="an old person", negative="a young person", guidance=2.0)
TWO = SliderConfig(target="a man\na dog", positive="an old man\nan old dog", negative="a child\na puppy", preserve="sad, glad")
FOUR = SliderConfig(target="a man\na dog", positive="an old man\nan old dog", negative="a child\na puppy")
PAIRS = SliderConfig("pairs of pictures")
SMALL = {"network": NetworkConfig(rank=4, alpha=4.0, targets="attention"), "precision": "fp32"}


def noise(seed, size=(64, 64)):
    drawn = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(drawn).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Three pictures, each with one from before, of which the second is larger."""
    folder = tmp_path / "pictures"
    (folder / "control").mkdir(parents=True)
    for i in range(3):
        noise(i, (96, 64)).save(folder / f"{i}.png")
        noise(100 + i, (192, 128) if i == 1 else (96, 64)).save(folder / "control" / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}", encoding="utf-8")
    return folder


def read(folder, slider=AGE, **settings):
    config = SubsetConfig("input/x", **{"resolution": 64, "bucket_step": 32, **settings})
    return slider_of(Dataset(scan.scan(folder, config)), slider)


def of(name="tiny", steps=6, **changes):
    return recipe(name, **{**SMALL, "length": LengthConfig(max_steps=steps), **changes})


@pytest.fixture
def asked(monkeypatch):
    """What each loss of a run was asked, at which strength, and with which result."""
    found, real = [], loop.loss_of

    def watched(session, inputs):
        loss = real(session, inputs)
        found.append(SimpleNamespace(session=session, inputs=inputs, at=session.adapter.strength, loss=loss.item()))
        return loss

    monkeypatch.setattr(loop, "loss_of", watched)
    return found


# The objective -------------------------------------------------------------------------------------------------------


def test_each_direction_is_asked_for_what_the_paper_says(tiny, folder, asked, monkeypatch):
    """Targets from the bare model's answers to the three prompts, each alone; the loss of a step is the mean of both."""
    t, answers = tiny("sd3"), []
    inner = loop.loss_of

    def bare(session, inputs):
        a = inputs.noised
        with torch.no_grad(), session.adapter.disabled():
            said = {}
            for prompt in ("a person", "an old person", "a young person"):
                text = {k: v.to(t.model.device) for k, v in session.encoded.text(prompt).items()}
                conditions = [session.model.condition(text, a.x[i : i + 1], {}) for i in range(len(a.x))]
                said[prompt] = session.model.predict(a.x, a.sigma, conditions)
        answers.append(said)
        return inner(session, inputs)

    monkeypatch.setattr(loop, "loss_of", bare)
    trained = go(t, read(folder, batch_size=2), of(steps=2))
    assert [one.at for one in asked] == [1.0, -1.0] * 2
    for one, said in zip(asked, answers, strict=True):
        push = 2.0 * (said["an old person"] - said["a young person"])
        wanted = said["a person"] + one.at * push
        a = one.inputs.noised
        assert push.abs().max() > 1e-4 and torch.allclose(a.target, wanted, atol=2e-5 * float(wanted.abs().max()) + 2e-5)
    for i, loss in enumerate(trained.losses):
        assert loss == pytest.approx(asked[2 * i].loss + asked[2 * i + 1].loss, rel=1e-5)
    # Before anything is learnt, both ends are equally far: the mean square of the push, halved for each.
    first = answers[0]
    push = 2.0 * (first["an old person"] - first["a young person"])
    assert asked[0].loss == pytest.approx(asked[1].loss, rel=1e-3)
    assert asked[0].loss == pytest.approx(push.square().mean().item() / 2, rel=1e-3)


def test_the_strengths_lead_into_opposite_directions(tiny, folder, asked):
    go(tiny("sd3"), read(folder), of(steps=10, optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant")))
    session, a = asked[-1].session, asked[-1].inputs.noised
    slider = asked[-1].inputs.slider
    with torch.no_grad(), session.model.hold(), session.adapter.attached(session.layers):
        said = {}
        for strength in (-1.0, 0.0, 1.0):
            with session.adapter.at(strength):
                said[strength] = session.model.answer(a.x, a.sigma, a.given)
        with session.adapter.disabled():
            push = session.model.answer(a.x, a.sigma, slider.positive) - session.model.answer(a.x, a.sigma, slider.negative)

    def along(strength):
        moved = said[strength] - said[0.0]
        return torch.nn.functional.cosine_similarity(moved.flatten(), push.flatten(), dim=0).item()

    assert along(1.0) > 0.5 and along(-1.0) < -0.5
    first, last = (sum(one.loss for one in some) for some in (asked[:4], asked[-4:]))
    assert last < 0.9 * first


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_directions_add_up_in_single_precision(tiny, folder, monkeypatch, precision):
    """As accumulated batches do; autograd would round the sum of two gradients in half precision."""
    added, real = [], FlatParameters.collect

    def watched(flat):
        before = flat.gradient.clone()
        real(flat)
        added.append((before, flat.gradient - before))

    monkeypatch.setattr(FlatParameters, "collect", watched)
    go(tiny("sd3"), read(folder), of(steps=2, precision=precision, speed="eager"))
    assert len(added) == 4 and [bool(before.any()) for before, _ in added] == [False, True] * 2
    assert all(found.any() for _, found in added)


# The promises --------------------------------------------------------------------------------------------------------


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


SETTINGS = {
    "prompts, accumulated, with dropout": (
        FOUR, {"optimizer": OptimizerConfig(learning_rate=1e-2, accumulate=2),
              "network": NetworkConfig(rank=4, targets="attention", dropout=0.2, rank_dropout=0.2)},
    ),
    "pairs": (PAIRS, {"loss": LossConfig("huber")}),
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_resumes_and_is_recorded_to_the_same_lora(tiny, folder, recorder, monkeypatch, interrupt, setting):  # noqa: F811
    t, (slider, changes) = tiny("sd3"), SETTINGS[setting]
    monkeypatch.setattr("lora_atelier.training.step_context.AT_LEAST", 1)
    data, changes = read(folder, slider), {"steps": 4, **changes}
    whole = go(t, data, of("whole", speed="eager", **changes))
    assert not recorder.replays
    recorded = go(t, data, of("recorded", **changes))
    assert recorder.replays and same(whole.tensors, recorded.tensors) and recorded.losses == whole.losses
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 3, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, data, of("cut", speed="eager", **changes))
    assert same(go(t, data, of("cut", speed="eager", **changes)).tensors, whole.tensors)


def test_a_block_that_is_computed_twice_has_the_same_strength_both_times(tiny, folder):
    t, data = tiny("sd3"), read(folder)
    plain, twice = (go(t, data, of(name, 3, gradient_checkpointing=on)) for name, on in (("plain", False), ("twice", True)))
    for key, tensor in plain.tensors.items():
        assert torch.allclose(tensor, twice.tensors[key], atol=1e-5, rtol=1e-3), key


def test_an_error_leaves_the_adapter_at_full_strength(tiny, folder, monkeypatch):
    seen = []

    def fail(session, inputs):
        if session.adapter.strength < 0:
            seen.append(session)
            raise RuntimeError("meanwhile")
        return real(session, inputs)

    real = loop.loss_of
    monkeypatch.setattr(loop, "loss_of", fail)
    with pytest.raises(RuntimeError, match="meanwhile"):
        go(tiny("sd3"), read(folder), of(speed="eager"))
    assert seen[0].adapter.strength == 1.0


class Told:
    """Conditionings as long as their prompts."""

    def __init__(self, positive, negative):
        self.sides = positive, negative

    def conditionings(self, batch):
        return [{"cond": torch.zeros(1, 4, 2)} for _ in batch.samples]

    def ends(self, batch):
        return tuple([{"cond": torch.zeros(1, length, 2)} for _ in batch.samples] for length in self.sides)


def test_a_form_knows_all_that_a_recording_is_told_apart_by(folder):
    """Else recordings would be made of what comes too seldom, or not of what comes often."""

    def form(slider, told=(8, 8), i=0):
        plan = Plan(read(folder, slider, masks="files"), 0)
        (batch,) = [batch for batch in plan.epoch_batches(0) if batch.samples == (i,)]
        return form_of(SimpleNamespace(plan=plan, encoded=Told(*told)), batch)

    Image.new("L", (96, 64), 255).save(folder / "1.mask.png")
    assert form(AGE) == form(AGE, i=2)
    unlike = [form(AGE), form(AGE, (9, 8)), form(AGE, (8, 9)), form(AGE, i=1), form(PAIRS), form(replace(AGE, guidance=3.0))]
    assert len(set(unlike)) == len(unlike)


# Pairs ---------------------------------------------------------------------------------------------------------------


def test_a_pair_is_noised_alike_and_each_end_is_its_own_picture(tiny, folder, asked):
    t = tiny("sd3")
    data = read(folder, PAIRS, resolution=96, fixed_height=64, buckets=False, flip=True)
    go(t, data, of(steps=3))
    for plus, minus in zip(asked[::2], asked[1::2], strict=True):
        assert (plus.at, minus.at) == (1.0, -1.0)
        a, b = plus.inputs.noised, minus.inputs.noised
        assert torch.equal(a.sigma, b.sigma) and not torch.equal(a.x, b.x)
        # Flow: x = (1 - s) x0 + s e and the target e - x0, so that x0 = x - s target and e = x + (1 - s) target.
        s = a.sigma.view(-1, 1, 1, 1)
        assert torch.allclose(a.x + (1 - s) * a.target, b.x + (1 - s) * b.target, atol=1e-4), "the same noise"
        found = (b.x - s * b.target).cpu()
        wanted = [t.model.latents_in(latent.to(t.model.device)).cpu() for latent in befores(t, folder)]
        assert any(torch.allclose(found, one, atol=1e-3) for one in wanted)


def befores(t, folder):
    """Latents of the pictures from before, each as it is and mirrored."""
    for i in range(3):
        picture = open_picture(folder / "control" / f"{i}.png").resize((96, 64), Image.Resampling.LANCZOS)
        for shown in (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            with torch.inference_mode():
                yield t.codec.encode(to_unit(torch.from_numpy(np.array(shown)))[None])


# What does not go together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": TextConfig("clip")}, "text encoder: a slider is learnt by the model alone"),
        ({"loss": LossConfig(preservation=1.0, preservation_prompt="a person")}, "output preservation: a slider"),
        ({"loss": LossConfig(mask_preservation=1.0)}, "output preservation: a slider|mask preservation: no picture"),
        ({"length": LengthConfig(when_enough="say")}, "when enough: a slider has no fixed losses"),
    ],
)
def test_what_means_nothing_for_a_slider_is_refused(tiny, folder, changes, message):
    with pytest.raises(AtelierError, match=message):
        go(tiny("sd3"), read(folder), of(**changes))


def test_a_slider_is_alone_in_its_run(tiny, folder):
    plain = Dataset(scan.scan(folder, SubsetConfig("input/x", resolution=64, bucket_step=32)))
    with pytest.raises(AtelierError, match="some of its pictures are a slider's and some are not"):
        go(tiny("sd3"), read(folder) + plain, of())


def test_prompts_decide_the_run_and_stand_in_its_file(tiny, folder):
    data = read(folder)
    (folder / "1.txt").write_text("another caption", encoding="utf-8")
    assert [sample.caption for sample in scan.refresh_captions(data).samples] == ["a person"] * 3
    first = go(tiny("sd3"), read(folder), of(steps=2))
    other = go(
        tiny("sd3"), read(folder, SliderConfig(target="a person", positive="a tall person", negative="a person")), of(steps=2)
    )
    assert other.epochs.files[-1].path.name == "tiny-2.safetensors", "another run"
    with safe_open(first.epochs.files[-1].path, "pt") as file:
        metadata = file.metadata()
    assert metadata["lora_atelier.slider"] == "'a person': 'a young person' to 'an old person', 2"
    assert "modelspec.trigger_phrase" not in metadata and first.epochs.captions == ("a person",) * 3
    assert first.epochs.pictures == (), "a grid is not judged by what the slider is practised on"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positive": "a"}, "negative: write what the slider"),
        ({"negative": "a"}, "positive: write what the slider"),
        ({"positive": "a", "negative": "a"}, "negative: 'a' is the positive prompt too"),
        ({"target": "a\nb", "positive": "c\nd\ne", "negative": "f"}, "positive: there are 3 lines and 2 of target"),
        ({"positive": "a", "negative": "b", "guidance": 0.0}, r"guidance: 0.0 is outside"),
        ({"positive": "a", "negative": "b", "guidance": 0.009}, r"guidance: 0.009 is outside 0.01 to 100"),
        ({"source": "films"}, "source: 'films' is not one of"),
        ({"positive": 3, "negative": "b"}, "positive: it was given int and no text"),
    ],
)
def test_prompts_that_say_nothing_are_refused(values, message):
    with pytest.raises(AtelierError, match=message):
        SliderConfig(**values)


def test_every_target_has_its_ends_once_for_all_that_is_preserved():
    rows = [(row.target, row.positive, row.negative) for row in TWO.ends]
    assert rows == [
        ("sad, a man", "sad, an old man", "sad, a child"), ("glad, a man", "glad, an old man", "glad, a child"),
        ("sad, a dog", "sad, an old dog", "sad, a puppy"), ("glad, a dog", "glad, an old dog", "glad, a puppy"),
    ]  # fmt: skip
    (anything,) = SliderConfig(positive="bright", negative="dark").ends
    assert anything.target == ""


@pytest.mark.parametrize("preserve", ["sad, glad", "sad，glad", "sad、glad、", "sad､glad", "sad، glad", "sad\nglad, sad"])
def test_what_is_preserved_is_parted_as_every_language_parts_it(preserve):
    rows = SliderConfig(target="a man", positive="an old man", negative="a child", preserve=preserve).ends
    assert [row.target for row in rows] == ["sad, a man", "glad, a man"]


def test_what_is_not_used_of_a_dataset_is_said(folder):
    data = read(folder, validation_share=0.4, caption_prefix="ohwx, ", shuffle_captions=True)
    (subset,) = data.subsets
    assert (subset.config.validation_share, subset.config.caption_prefix, subset.config.role) == (0.0, "", "training")
    said = " ".join(subset.warnings)
    assert "nothing is held out" in said and "caption_prefix, shuffle_captions have no part" in said
    assert "the captions are not read" in " ".join(subset.notes)
    held = Dataset(scan.scan(folder, SubsetConfig("input/v", resolution=64, bucket_step=32, role="validation")))
    own = Dataset(scan.scan(folder, SubsetConfig("input/r", resolution=64, bucket_step=32, role="regularisation")))
    both = slider_of(own + held, AGE)
    assert len(both.subsets) == 1 and "3 pictures for validation are not used" in " ".join(both.warnings)
    with pytest.raises(AtelierError, match="dataset: there is no picture in it for the slider"):
        slider_of(held, AGE)


def test_the_time_of_several_sliders_is_that_of_the_slower(folder):
    for first, second in ((AGE, PAIRS), (PAIRS, AGE)):
        plan = Plan(read(folder, first) + read(folder, second), 0)
        assert circumstances(recipe("x"), plan, "model", "cpu")["slider"] == "prompts"
    assert circumstances(recipe("x"), Plan(read(folder, PAIRS), 0), "model", "cpu")["slider"] == "pairs of pictures"


CAPTIONS = {
    "caption_prefix": "a", "caption_suffix": "a", "shuffle_captions": True, "caption_dropout": 0.1, "tag_dropout": 0.1,
    "keep_tokens": 1, "caption_lines": "alternatives", "wildcards": True, "further_captions": ".long.txt",
    "trigger_words": "person", "keep_separator": "|||", "dropped_caption": "trigger words",
}  # fmt: skip


def test_no_setting_of_captions_changes_the_prompts_of_a_slider(folder):
    plain = read(folder).subsets[0].config
    for name, value in CAPTIONS.items():
        (subset,) = read(folder, **{name: value}).subsets
        assert subset.config == plain and f"{name} has no part" in " ".join(subset.warnings), name
    (subset,) = read(folder, **CAPTIONS).subsets
    assert subset.config == plain


@pytest.mark.parametrize(("first", "second"), [(AGE, PAIRS), (PAIRS, AGE), (AGE, AGE)])
def test_a_slider_is_not_made_of_another_one(folder, first, second):
    with pytest.raises(AtelierError, match="input/x comes from another Slider Dataset"):
        slider_of(read(folder, first), second)


def test_pictures_that_are_no_pairs_are_named(folder):
    assert not read(folder, PAIRS, crop="random").warnings, "the pictures from before are cut with theirs"
    noise(5, (64, 96)).save(folder / "control" / "2.png")
    with pytest.raises(AtelierError, match=r"2\.png: it has 64 x 96 pixels and another shape than 2\.png"):
        read(folder, PAIRS)
    (folder / "control" / "2.png").unlink()
    with pytest.raises(AtelierError, match=r"1 picture of input/x without a picture from before: 2\.png"):
        read(folder, PAIRS)
