"""The numbers: what is compared, and what it comes to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.grid import features, plan
from lora_atelier.training.grid import judge as judging
from lora_atelier.training.grid.judge import Judge
from lora_atelier.training.grid.score import Score, mean_score, mean_scores, score, usual_nearest
from lora_atelier.training.runs.run import SavedLoRA
from PIL import Image


def at(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_likeness_is_the_mean_and_nearest_the_largest_cosine():
    found = score(at(0)[0], at(60)[0], at(0, 90))
    assert found.likeness == pytest.approx(0.5, abs=1e-6)
    assert found.nearest == pytest.approx(1, abs=1e-6)
    assert found.agreement == pytest.approx(0.5, abs=1e-6)


def test_what_is_usual_is_how_near_the_training_pictures_are_to_each_other():
    assert usual_nearest(at(0, 60, 120, 180)) == pytest.approx(0.5, abs=1e-5)
    assert usual_nearest(at(0)) == 1.0
    many = at(*range(0, 180, 20))
    own = many.numpy() @ many.numpy().T - 3 * np.eye(len(many))
    assert usual_nearest(many) == pytest.approx(np.quantile(own.max(axis=1), 0.9), abs=1e-5)


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3), min_size=1, max_size=8))
def test_means_lie_between(values):
    scores = [Score(*v) for v in values]
    found = mean_score(scores)
    for name in ("likeness", "nearest", "agreement"):
        of = [getattr(s, name) for s in scores]
        assert min(of) - 1e-9 <= getattr(found, name) <= max(of) + 1e-9


def test_means_are_taken_over_the_pages_that_have_a_cell():
    a, b = Score(0, 0, 0), Score(1, 1, 1)
    assert mean_scores([{(1, 0): a}, {(1, 0): b, (2, 0): b}]) == {(1, 0): Score(0.5, 0.5, 0.5), (2, 0): b}
    assert mean_scores([]) == {}


def batch(*pictures: Image.Image) -> torch.Tensor:
    return features.embed_pictures(features.ColoursAndEdges(), pictures)


def test_directions_have_length_one_and_are_the_same_for_the_same():
    found = batch(noise_picture((80, 60), 8, 1), noise_picture((80, 60), 8, 1), noise_picture((64, 64), 8, 2))
    assert torch.allclose(found.norm(dim=1), torch.ones(3)) and torch.equal(found[0], found[1])
    assert found[0] @ found[2] < 0.999


def test_size_hardly_counts_and_colour_and_outline_do():
    red = Image.new("RGB", (96, 96), "white")
    red.paste("red", (24, 24, 72, 72))
    large = red.resize((384, 384), Image.Resampling.NEAREST)
    blue = Image.new("RGB", (96, 96), "white")
    blue.paste("blue", (24, 24, 72, 72))
    moved = Image.new("RGB", (96, 96), "white")
    moved.paste("red", (0, 0, 40, 40))
    same, other_colour, other_place = (batch(red, other) for other in (large, blue, moved))
    similar = [float(a @ b) for a, b in (same, other_colour, other_place)]
    assert similar[0] > 0.98 and similar[1] < similar[0] - 0.02 and similar[2] < similar[0] - 0.02


def test_histogram_and_edges_are_what_numpy_counts():
    picture = noise_picture((64, 64), 80, 3)
    x = features.to_pixels(picture).movedim(-1, 1)
    values = np.asarray(picture, dtype=np.float32) / 255
    counted, _ = np.histogramdd(np.minimum(values.reshape(-1, 3), 0.999), bins=(4, 4, 4), range=[(0, 1)] * 3)
    assert torch.allclose(features.histogram(x)[0], torch.from_numpy(counted).flatten().float().div(64 * 64).sqrt(), atol=1e-6)
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::4] = 1
    found = features.edges(stripes).view(8, 4, 4)
    assert (found[0] > 0.1).all() and found[1:].abs().max() == 0  # upright stripes change across only
    turned = features.edges(stripes.transpose(2, 3)).view(8, 4, 4)
    assert (turned[4] > 0.1).all() and turned[:4].abs().max() == 0


def test_large_datasets_are_sampled_evenly():
    assert features.evenly(list(range(1000)), 10) == list(range(0, 1000, 100))
    assert features.evenly([1, 2], 10) == [1, 2]


def test_a_judge_compares_with_the_control_of_the_same_page(tmp_path):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        noise_picture((64, 64), 8, i).save(paths[-1])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    judge = Judge(features.ColoursAndEdges(), [*paths, tmp_path / "broken.png", tmp_path / "gone.png"])
    assert judge.dataset.shape[0] == 3 and judge.scale() is None
    judge.see(0, (1, 0), noise_picture((64, 64), 8, 7))
    assert judge.scores == {} and judge.caption(0, (1, 0)) == ""
    judge.see(0, (0, 0), noise_picture((64, 64), 8, 5))
    judge.see(0, (1, 0), noise_picture((64, 64), 8, 0))
    found = judge.scores[0]
    assert found[0, 0].agreement == pytest.approx(1, abs=1e-5)
    assert found[1, 0].nearest == pytest.approx(1, abs=1e-5) and found[1, 0].agreement < 0.999
    directions = judge.dataset
    assert found[1, 0].likeness == pytest.approx(float(F.cosine_similarity(directions, directions[:1]).mean()), abs=1e-5)
    scale = judge.scale()
    assert scale is not None and scale.control == found[0, 0] and scale.usual_nearest == usual_nearest(directions)
    assert judge.caption(0, (1, 0)).count("/") == 2 and judge.caption(0, (0, 4)) == judge.caption(0, (0, 0))


class Brightness:
    """An embedding that everybody can reckon: (light, dark) as a direction."""

    name = "brightness"

    def embed(self, pixels):
        light = pixels.mean(dim=(1, 2, 3))
        return torch.stack([light, 1 - light], 1)


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level,) * 3)


def test_the_hint_says_what_it_is_taken_from_and_what_a_page_says_otherwise(tmp_path):
    """Over both pages nothing was gained; on the second page alone it was, and that page says so."""
    grey(250).save(tmp_path / "a.png")
    grey(230).save(tmp_path / "b.png")
    axes = plan.Axes(("x", "y"), (plan.Column(SavedLoRA(tmp_path / "1", 1, 10), "ink", "epoch 1"),), (1.0,), (0,))
    found = judging.Judge(Brightness(), [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "gone.png"])
    assert judging.advise(axes, {}, found).reason.startswith("Nothing was measured")
    for page, control, cell in ((0, 200, 20), (1, 100, 130)):
        found.see(page, (0, 0), grey(control))
        if page == 1:
            assert "all 2 pages together, as far as it is drawn: " in judging.advise(axes, {}, found).reason
        found.see(page, (1, 0), grey(cell))
    whole = judging.advise(axes, {}, found)
    assert whole.epoch is None and whole.reason.startswith(
        "By brightness, all 2 pages together: At strength 1 no epoch is closer"
    )
    assert judging.advise_page(axes, {}, found, 0) == ""
    assert judging.advise_page(axes, {}, found, 1).startswith("This page alone: epoch 1 seems good at a full 1")
    assert judging.compared(found) == ["Compared were 2 of the dataset's 3 pictures: the others are gone or cannot be opened."]
