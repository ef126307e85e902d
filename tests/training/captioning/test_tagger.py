"""A tagger of the WD form, through onnxruntime."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests.training.captioning import tiny_tagger
from lora_atelier.training.captioning import list_captioners, load
from lora_atelier.training.captioning.protocol import Picture
from lora_atelier.training.captioning.settings import GenerationSettings, TaggerSettings
from lora_atelier.training.captioning.tagger import as_input, chosen, read_tags
from lora_atelier.training.errors import AtelierError
from PIL import Image

CPU = torch.device("cpu")
LOW = TaggerSettings(0.0, 0.0)


def tagger(folder, settings=LOW):
    return load(folder.name, folder.parent, "", GenerationSettings(), CPU, settings)


@pytest.fixture
def colours(tmp_path):
    """One picture of one colour, (red, green, blue) = (204, 102, 51): 0.8, 0.4 and 0.2."""
    Image.new("RGB", (8, 8), (204, 102, 51)).save(tmp_path / "colours.png")
    return [Picture(tmp_path / "colours.png")]


def test_probabilities_are_those_of_blue_green_red_from_0_to_255(tmp_path, colours):
    values = tagger(tiny_tagger.build_tagger(tmp_path / "wd")).probabilities(colours)
    assert values == pytest.approx(np.array([[0.3, 0.4, 0.2, 0.4, 0.8, 0.2, 0.5]]))


@pytest.mark.parametrize(
    ("settings", "caption"),
    [
        (TaggerSettings(), "red_thing"),
        (TaggerSettings(general=0.35, character=1), "red_thing, ^_^, green_thing"),
        (TaggerSettings(general=0.6, character=0.1), "miku_(x), red_thing"),
        (TaggerSettings(rating=True), "sensitive, red_thing"),
        (TaggerSettings(0.0, 0.0, True, ("red thing", "*_(x)")), "sensitive, ^_^, green_thing, blue_thing"),
        (TaggerSettings(0.9, 0.9), ""),
    ],
)
def test_thresholds_rating_and_blacklist(tmp_path, colours, settings, caption):
    assert tagger(tiny_tagger.build_tagger(tmp_path / "wd"), settings).caption(colours) == [caption]


def test_r3_takes_tags_from_six_tenths_on():
    assert (TaggerSettings().general, TaggerSettings().character) == (0.6, 0.6)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_what_is_chosen_is_at_or_above_its_threshold_and_falls(general, character, seed):
    tags = [(f"tag{i}", (0, 4, 9)[i % 3]) for i in range(12)]
    row = np.random.default_rng(seed).random(12)
    value = {name: row[i] for i, (name, _) in enumerate(tags)}
    got = chosen(row, tags, TaggerSettings(general, character))
    limits = {4: character, 0: general}
    assert set(got) == {name for name, kind in tags if kind in limits and value[name] >= limits[kind]}
    for kind in limits:
        own = [value[name] for name in got if (name, kind) in tags]
        assert own == sorted(own, reverse=True)


def test_a_picture_stands_in_the_middle_of_a_white_square():
    """4 x 2 black pixels on a square of 4: one white row above, one below."""
    pixels = as_input(Image.new("RGB", (4, 2), "black"), 4)
    assert pixels.dtype == np.float32 and (pixels[[0, 3]] == 255).all() and (pixels[1:3] == 0).all()
    red = as_input(Image.new("RGB", (3, 3), "red"), 6)
    assert red.shape == (6, 6, 3) and (red == [0, 0, 255]).all()


@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_a_model_that_takes_a_fixed_number_at_a_time_gives_the_same(tmp_path, batch):
    folder = tiny_tagger.build_tagger(tmp_path / "wd", batch=batch)
    pictures = []
    for i in range(4):
        Image.new("RGB", (5, 9), (60 * i, 10, 200)).save(tmp_path / f"{i}.png")
        pictures.append(Picture(tmp_path / f"{i}.png"))
    values = tagger(folder).probabilities(pictures)
    alone = [tagger(tiny_tagger.build_tagger(tmp_path / f"one{i}")).probabilities([p])[0] for i, p in enumerate(pictures)]
    assert values == pytest.approx(np.array(alone))


def test_it_is_listed_by_its_files(tmp_path):
    tiny_tagger.build_tagger(tmp_path / "wd")
    (tmp_path / "wd" / "config.json").write_text('{"architecture": "vit"}')
    assert list_captioners(tmp_path)[-1] == "wd"
    assert tagger(tmp_path / "wd") is not None


def test_without_onnxruntime_one_sentence_says_so(tmp_path, monkeypatch):
    folder = tiny_tagger.build_tagger(tmp_path / "wd")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AtelierError, match=r"captioner: wd is a tagger .* needs the Python package onnxruntime\. Install it"):
        tagger(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"there is no .*selected_tags\.csv"),
        ("tag_id,name\n0,cat\n", r"selected_tags\.csv cannot be read: a table with the columns name and category"),
        ("name,category\ncat,general\n", r"selected_tags\.csv cannot be read"),
        ("name,category\ncat\n", r"selected_tags\.csv cannot be read"),
        ("name,category\n", r"selected_tags\.csv lists no tags"),
        ("name,category\ncat,0\n", r"wd's selected_tags\.csv lists 1 tag, but model\.onnx answers for 7"),
    ],
)
def test_a_tag_list_that_does_not_fit_is_named(tmp_path, text, message):
    folder = tiny_tagger.build_tagger(tmp_path / "wd")
    (folder / "selected_tags.csv").unlink()
    if text is not None:
        (folder / "selected_tags.csv").write_text(text)
    with pytest.raises(AtelierError, match=message):
        tagger(folder)


def test_a_tag_list_in_another_encoding_is_named(tmp_path):
    (tmp_path / "selected_tags.csv").write_bytes("name,category\ncafé,0\n".encode("cp1252"))
    with pytest.raises(AtelierError, match=r"selected_tags\.csv cannot be read"):
        read_tags(tmp_path / "selected_tags.csv")


def test_a_broken_model_is_named(tmp_path):
    folder = tiny_tagger.build_tagger(tmp_path / "wd")
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(AtelierError, match=r"model\.onnx cannot be loaded as an ONNX model"):
        tagger(folder)
    (folder / "model.onnx").rename(folder / "a.onnx")
    (folder / "b.onnx").write_bytes(b"")
    with pytest.raises(AtelierError, match=r"captioner: wd has 2 ONNX files. Name the one to use model.onnx"):
        tagger(folder)


def test_a_model_of_another_form_is_named(tmp_path, colours):
    """Channels first, as models that were converted by others have it; and answers that are no probabilities."""
    import onnx

    folder = tiny_tagger.build_tagger(tmp_path / "wd")
    model = onnx.load(folder / "model.onnx")
    for i, size in enumerate((1, 3, 8, 8)):
        model.graph.input[0].type.tensor_type.shape.dim[i].dim_value = size
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(AtelierError, match=r"model\.onnx takes pictures in the shape \[1, 3, 8, 8\]"):
        tagger(folder)
    other = tiny_tagger.build_tagger(tmp_path / "other")
    model = onnx.load(other / "model.onnx")
    for bias in (-3, np.nan, np.inf):
        model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.full(7, bias, np.float32), "bias"))
        onnx.save(model, other / "model.onnx")
        with pytest.raises(AtelierError, match="captioner: other answers in a way that no WD tagger does"):
            tagger(other).caption(colours)
