"""Clips: which frames they are, the batches that they make, and their views."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import from_nodes
from lora_atelier.training.dataset.clips import frames_of, stretches
from lora_atelier.training.dataset.images import open_picture
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.report import remarks
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, scan
from lora_atelier.training.dataset.steps_ahead import SubsetSource, steps_per_epoch
from lora_atelier.training.dataset.stream import batches
from lora_atelier.training.dataset.tags import tag_frequency
from lora_atelier.training.dataset.thumbnails import write_thumbnails
from lora_atelier.training.dataset.views import view
from lora_atelier.training.errors import AtelierError
from PIL import Image

from .made_films import decoded, levels, write

WAYS = ("beginning", "middle", "chunks", "evenly")


def config(frames="1, 5, 9", **settings):
    return SubsetConfig("input/films", resolution=64, bucket_step=16, clip_frames=frames, **settings)


@pytest.mark.parametrize(
    ("way", "wanted"),
    [
        ("beginning", [range(5)]), ("middle", [range(3, 8)]), ("chunks", [range(5), range(5, 10)]),
        ("evenly", [range(5), range(3, 8), range(7, 12)]),
    ],
)  # fmt: skip
def test_the_ways_to_choose(way, wanted):
    assert stretches(12, Fraction(24), config("5", clip_start=way)) == [tuple(one) for one in wanted]


def test_frames_are_the_nearest_in_time():
    """30 frames a second to 16: moments of 1/16 s are 0, 1.875, 3.75, 5.625 ... frames."""
    assert stretches(30, Fraction(30), config("5", clip_rate=16.0)) == [(0, 2, 4, 6, 8)]
    assert stretches(12, Fraction(12), config("5", clip_rate=24.0)) == [(0, 1, 1, 2, 2)]
    assert stretches(12, Fraction(12), config("5", clip_rate=12.0)) == [(0, 1, 2, 3, 4)]


@given(
    frames=st.integers(1, 400),
    rate=st.fractions(1, 120, max_denominator=1001),
    wanted=st.sampled_from([0.0, 8.0, 16.0, 23.976, 24.0, 30.0]),
    counts=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    way=st.sampled_from(WAYS),
)
def test_every_clip_lies_in_its_film_and_has_the_largest_number_that_fits(frames, rate, wanted, counts, way):
    settings = config(",".join(map(str, counts)), clip_start=way, clip_rate=wanted)
    found = stretches(frames, rate, settings)
    assert found == stretches(frames, rate, settings)
    # Seconds from the first frame to the last one; so many moments lie in them.
    length = frames if not wanted else int(Fraction(frames - 1) / rate * Fraction(str(wanted))) + 1
    most = max((count for count in counts if count <= length), default=0)
    assert bool(found) == bool(most) and {len(clip) for clip in found} <= {most}
    for clip in found:
        assert clip == tuple(sorted(clip)) and clip[0] >= 0 and clip[-1] < frames
        if wanted and most > 1:
            assert abs((clip[-1] - clip[0]) / rate - (most - 1) / Fraction(str(wanted))) <= 1 / rate
    if most and way in ("beginning", "middle"):
        assert len(found) == 1
    if most and way == "chunks":
        assert len(found) == length // most and (wanted or len({place for clip in found for place in clip}) == most * len(found))
    if most and way == "evenly":
        assert wanted or {place for clip in found for place in clip} == set(range(frames))


@pytest.fixture
def folder(tmp_path):
    """A film of 14 frames with a caption, one of 6 without, one of 2, an animated picture of 5, and a picture."""
    folder = tmp_path / "films"
    folder.mkdir()
    write(folder / "long.mp4", levels(14))
    (folder / "long.txt").write_text("a long walk", encoding="utf-8")
    write(folder / "mid.mkv", levels(6, seed=1))
    write(folder / "short.avi", levels(2, seed=2))
    first, *others = map(Image.fromarray, levels(5, seed=3))
    first.save(folder / "waving.webp", save_all=True, append_images=others, lossless=True, duration=50)
    Image.fromarray(levels(1, seed=4)[0]).save(folder / "still.png")
    return folder


def test_a_folder_of_films_becomes_clips(folder):
    (subset,) = scan(folder, config("5, 13", clip_start="chunks"))
    rows = [(sample.path.name, sample.frames, sample.stretch and sample.stretch.frames) for sample in subset.samples]
    assert rows == [
        ("long.mp4", 13, tuple(range(13))), ("mid.mkv", 5, tuple(range(5))), ("still.png", 1, None),
        ("waving.webp", 5, tuple(range(5))),
    ]  # fmt: skip
    assert "3 films (2 clips of 5 frames, 1 clip of 13 frames) and 1 picture x 1" in subset.describe()
    assert [sample.caption for sample in subset.samples] == ["a long walk", None, None, None]
    assert any(
        "films with fewer frames than the smallest number in clip_frames" in w and "short.avi" in w for w in subset.warnings
    )
    assert not any("only the first is used" in warning for warning in subset.warnings)


def test_without_numbers_nothing_is_as_it_was_not(folder):
    (subset,) = scan(folder, config(""))
    assert [sample.path.name for sample in subset.samples] == ["still.png", "waving.webp"]
    assert any("films are not trained on (3)" in w and "Set clip_frames" in w for w in subset.warnings)
    plain = dataclasses.replace(subset, config=SubsetConfig("input/films", resolution=64, bucket_step=16))
    assert Dataset((plain,)).fingerprint == Dataset((subset,)).fingerprint
    stills = Dataset(scan(folder, config("1")))
    assert [sample.frames for sample in stills.samples] == [1] * 5


def test_other_clips_are_another_dataset_and_have_keys_of_their_own(folder):
    settings = [config("5"), config("5", clip_start="middle"), config("5", clip_rate=12.0), config("5", clip_start="chunks")]
    found = [Dataset(scan(folder, one)) for one in settings]
    assert len({one.fingerprint for one in found}) == len(found)
    keys = [sample.key for sample in found[3].samples]
    assert len(set(keys)) == len(keys) == 5 and len({sample.origin for sample in found[3].samples}) == 4
    assert folder_stamp(folder, films=True) != folder_stamp(folder)


def test_clips_of_one_film_are_held_out_together(folder):
    dataset = Dataset(scan(folder, config("1", clip_start="chunks", validation_share=0.3)))
    plan = Plan(dataset, 0)
    samples = dataset.subsets[0].samples
    held = {samples[i].origin for batch in plan.validation for i in batch.samples}
    trained = {samples[i].origin for _, _, members in plan.buckets for i in members}
    assert held and trained and not held & trained


def test_a_batch_holds_one_number_of_frames(folder):
    dataset = Dataset(scan(folder, config("1, 5", clip_start="chunks", batch_size=2)))
    plan = Plan(dataset, 0)
    samples = dataset.subsets[0].samples
    for batch in plan.epoch_batches(0):
        assert {samples[i].frames for i in batch.samples} == {batch.frames}
    assert {batch.frames for batch in plan.epoch_batches(0)} == {1, 5} and plan.largest_batch().frames == 5
    assert "48 x 48, 5 frames: 4 clips" in plan.describe() or "5 frames: 4 clips" in plan.describe()


def test_steps_are_told_before_anything_is_decoded(folder, tmp_path):
    for settings in (config("5", clip_start="chunks"), config("1, 5", clip_start="evenly", batch_size=2), config("")):
        source = SubsetSource(settings, folder, folder, tmp_path / "index.json")
        assert steps_per_epoch([source]) == Plan(Dataset(scan(folder, settings)), 0).steps_per_epoch


def test_all_frames_are_cut_scaled_and_mirrored_alike(folder):
    settings = config("5", clip_start="middle", crop="random", flip=True)
    (subset,) = scan(folder, settings)
    sample = subset.samples[0]
    own = decoded(folder / "long.mp4")
    shown = [view(sample, settings, (32, 48), 3, sighting) for sighting in range(12)]
    assert {one.flipped for one in shown} == {True, False} and len({one.crop for one in shown}) > 1
    for one in shown:
        found = one.levels(sample.path)
        assert found.shape == (5, 48, 32, 3) and found.dtype == torch.uint8
        for frame, place in zip(found, sample.stretch.frames, strict=True):
            Image.fromarray(own[place]).save(folder / "frame.png")
            assert torch.equal(frame, dataclasses.replace(one, stretch=None).levels(folder / "frame.png"))


@pytest.mark.parametrize("ahead", [False, True])
def test_films_come_to_the_encoder_one_by_one_and_pictures_together(folder, ahead):
    settings = config("5", clip_start="chunks")
    (subset,) = scan(folder, settings)
    shown = [(sample, view(sample, settings, (64, 48))) for sample in subset.samples]
    found = list(batches([*shown, *shown[-2:-1]], lambda size: 4, ahead))
    assert sorted(tuple(one.levels.shape) for one in found) == [(1, 5, 48, 64, 3)] * 4 + [(2, 48, 64, 3)]
    for one in found:
        for (sample, how), levels_ in zip(one.shown, one.levels, strict=True):
            assert torch.equal(levels_, how.levels(sample.path))


def test_thumbnails_show_the_middle_of_each_clip(folder, tmp_path):
    (subset,) = scan(folder, config("5", clip_start="chunks"))
    written = write_thumbnails(Dataset((subset,)), tmp_path / "small")
    assert len(set(written)) == len(subset.samples) and all(max(Image.open(path).size) <= 192 for path in written)


def test_masks_hold_for_all_frames_and_what_cannot_be_is_refused(folder):
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(folder / "mid.mask.png")
    (subset,) = scan(folder, config("5", masks="files"))
    assert [sample.path.name for sample in subset.samples if sample.mask] == ["mid.mkv"]
    with pytest.raises(AtelierError, match=r"masks: long.mp4 is a film, whose transparency is not read"):
        scan(folder, config("5", masks="alpha"))
    (folder / "control").mkdir()
    Image.fromarray(mask).save(folder / "control" / "long.png")
    with pytest.raises(AtelierError, match=r"long.mp4: this is a film, and long.png would be its control picture"):
        scan(folder, config("5"))


def test_films_that_are_all_too_short_or_slow_are_told(folder):
    with pytest.raises(AtelierError, match=r"every film in .+ has fewer frames than 33"):
        for path in (folder / "still.png", folder / "short.avi"):
            path.unlink()
        scan(folder, config("33, 49"))
    (subset,) = scan(folder, config("5", clip_rate=48.0))
    assert any("than clip_rate asks for (48)" in warning and "long.mp4" in warning for warning in subset.warnings)


def test_the_index_knows_films_again(folder, tmp_path, monkeypatch):
    from lora_atelier.training.dataset import films, index

    first = scan(folder, config("5"), index=tmp_path / "index.json")
    monkeypatch.setattr(index, "_known", {})
    monkeypatch.setattr(films, "look_at", lambda path: pytest.fail("decoded again"))
    assert scan(folder, config("5"), index=tmp_path / "index.json") == first


@pytest.mark.parametrize("wrong", ["0", "five", "-5", "1, 2.5", "100000"])
def test_numbers_that_are_none_are_refused(wrong):
    with pytest.raises(AtelierError, match="clip frames: "):
        config(wrong)


def test_films_from_nodes_are_those_of_a_folder(tmp_path):
    """Two films of other lengths, of which one holds a frame twice, and a picture."""
    frames = [levels(12), levels(7, seed=1), levels(1, seed=2)]
    frames[1][3] = frames[1][2]
    folder = tmp_path / "films"
    folder.mkdir()
    for number, one in enumerate(frames[:2]):
        write(folder / f"{number}.mkv", one)
        (folder / f"{number}.txt").write_text(f"film {number}")
    Image.fromarray(frames[2][0]).save(folder / "2.png")
    (folder / "2.txt").write_text("film 2")
    settings = config("1, 5", clip_start="chunks")
    given = [torch.from_numpy(one.astype(np.float32) / 255) for one in frames]
    made = from_nodes.subset_of(given, [f"film {number}" for number in range(3)], settings, tmp_path / "made")
    read = scan(folder, settings)[0]

    def seen(subset):
        read = [frames_of(one.path, one.stretch) if one.stretch else [open_picture(one.path)] for one in subset.samples]
        return [(one.caption, one.frames) for one in subset.samples], [np.stack(list(map(np.asarray, one))) for one in read]

    (said, shown), (wanted, expected) = seen(made), seen(read)
    assert said == wanted == [("film 0", 5), ("film 0", 5), ("film 1", 5), ("film 2", 1)]
    own = [frames[0][:5], frames[0][5:10], frames[1][:5], frames[2]]
    for one, other, source in zip(shown, expected, own, strict=True):
        assert np.array_equal(one, other) and np.array_equal(one, source)


def test_what_films_from_nodes_cannot_be(tmp_path):
    film, settings = torch.rand(6, 32, 32, 3), config("5")
    for what, said in (
        ({"controls": {"control": [film]}}, "control: clip_frames makes films"),
        ({"masks": [film[..., 0]]}, "masks: clip_frames"),
    ):
        with pytest.raises(AtelierError, match=said):
            from_nodes.subset_of([film], None, settings, tmp_path, **what)
    with pytest.raises(AtelierError, match="texts: there are 6 for 1 film"):
        from_nodes.subset_of([film], ["a"] * 6, settings, tmp_path)
    with pytest.raises(AtelierError, match="fewer frames than 9"):
        from_nodes.subset_of([film], None, config("9"), tmp_path)
    with pytest.raises(AtelierError, match="film 1 has transparency"):
        from_nodes.subset_of([torch.rand(6, 32, 32, 4)], None, settings, tmp_path)


def test_what_is_told_of_a_folder_counts_films_and_not_clips(folder):
    """Copies of a film, missing captions, odd shapes and tags are each named once, however many clips there are."""
    write(folder / "copy.mkv", levels(15, seed=8))
    write(folder / "again.mkv", levels(15, seed=8))
    (folder / "again.txt").write_text("a square, walking", encoding="utf-8")
    Image.new("RGB", (64, 48), "white").save(folder / "again.mask.png")
    found = Dataset(scan(folder, config("5", clip_start="chunks", masks="files")))
    names = [sample.path.name for sample in found.samples]
    assert names.count("copy.mkv") == names.count("again.mkv") == 3
    said = " ".join([*remarks(found.subsets[0]), *found.warnings])
    assert "may be duplicates (1): copy.mkv looks like again.mkv." in said
    bare = re.search(r"no caption: ([^.]+\.\w+[^.]*)\.", said)
    assert said.count("no caption: ") == 1 and bare and bare[1].count("copy.mkv") == 1
    assert "4 without caption" in found.describe()
    assert list(tag_frequency(found).values()) == [{"a square": 1, "walking": 1, "a long walk": 1}]
    assert "no mask, so all of the picture is learnt: copy.mkv, long.mp4, mid.mkv and others." in said
