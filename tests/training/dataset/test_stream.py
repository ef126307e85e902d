"""Pictures read ahead of the encoder: their order, how many wait, what a broken one says, and what a cancel leaves behind."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import stream
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.views import View, view
from lora_atelier.training.dataset.workers import WORKERS
from lora_atelier.training.errors import AtelierError
from PIL import Image

SIZES = [(64, 64), (96, 64), (64, 96)]
COUNT = 60


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Pictures of three sizes in no order, one in three with a mask, some mirrored."""
    folder = tmp_path_factory.mktemp("set")
    stream_of_noise = np.random.default_rng(0)
    for i in range(COUNT):
        width, height = SIZES[i % 3]
        pixels = stream_of_noise.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.{'png' if i % 2 else 'webp'}", lossless=True)
        if i % 3 == 0:
            Image.fromarray(pixels[..., 0]).save(folder / f"{i:02d}.mask.png")
    config = SubsetConfig("input/set", resolution=64, bucket_step=32, masks="files", flip=True)
    (subset,) = scan(folder, config)
    return [(sample, view(sample, config, SIZES[i % 3], 0, i)) for i, sample in enumerate(subset.samples)]


def flat(found):
    return [
        (sample, levels, mask)
        for one in found
        for (sample, _), levels, mask in zip(one.shown, one.levels, one.masks, strict=True)
    ]


@given(st.integers(1, 70), st.integers(0, COUNT), st.booleans())
def test_every_picture_comes_once_in_the_order_of_its_size(shown, count, pictures, ahead):
    given = shown[:pictures]
    found = list(stream.batches(given, lambda size: count, ahead))
    assert all(len({one.size for _, one in batch.shown}) == 1 and 1 <= len(batch.shown) <= count for batch in found)
    order = [sample.path for size in dict.fromkeys(one.size for _, one in given) for sample, one in given if one.size == size]
    assert [sample.path for sample, _, _ in flat(found)] == order


@pytest.mark.parametrize("ahead", [True, False])
def test_pixels_and_masks_are_those_of_the_views(shown, ahead):
    by_path = {sample.path: one for sample, one in shown}
    assert {one.flipped for one in by_path.values()} == {True, False}
    for sample, levels, mask in flat(stream.batches(shown, lambda size: 7, ahead)):
        pixels = np.asarray(Image.open(sample.path).convert("RGB"))
        expected = pixels[:, ::-1] if by_path[sample.path].flipped else pixels
        assert np.array_equal(levels.numpy(), expected), sample.path
        assert (mask is None) == (sample.mask is None)
        if mask is not None:
            assert torch.equal(mask, by_path[sample.path].mask_levels(sample)) and mask.shape == levels.shape[:2]


class Reads:
    """Counts the pictures that are read, and those that are read and not yet taken."""

    def __init__(self, monkeypatch):
        self.begun: list[str] = []
        self.threads: set[int] = set()
        self.wait = threading.Event()
        self.wait.set()
        real = View.levels

        def levels(one, path):
            self.begun.append(path.name)
            self.threads.add(threading.get_ident())
            assert self.wait.wait(30)
            return real(one, path)

        monkeypatch.setattr(View, "levels", levels)


@pytest.mark.parametrize("count", [1, 3, 16, 40])
def test_no_more_wait_than_one_batch_and_two_a_thread(shown, monkeypatch, count):
    reads, taken = Reads(monkeypatch), 0
    for batch in stream.batches(shown, lambda size: count, ahead=True):
        taken += len(batch.shown)
        time.sleep(0.02)  # an encoder at work
        assert len(reads.begun) - taken < 2 * WORKERS + count
    assert sorted(reads.begun) == sorted(sample.path.name for sample, _ in shown)
    assert threading.get_ident() not in reads.threads and 1 <= len(reads.threads) <= WORKERS


@pytest.mark.parametrize("count", [1, 7, 20])
def test_the_next_batch_is_read_while_the_caller_works_on_one(shown, monkeypatch, count):
    reads, taken = Reads(monkeypatch), 0
    for batch in stream.batches(shown, lambda size: count, ahead=True):
        taken += len(batch.shown)
        end = time.monotonic() + 30
        while len(reads.begun) <= taken < COUNT:  # the caller waits for it, and does not ask for it
            assert time.monotonic() < end, "the threads have nothing to do"
            time.sleep(0.001)
    assert taken == COUNT


def test_large_files_count_by_what_they_take(shown, monkeypatch):
    reads, taken = Reads(monkeypatch), 0
    monkeypatch.setattr(stream, "MEMORY", 3 * 64 * 96 * stream.BYTES_A_PIXEL)
    for batch in stream.batches(shown, lambda size: 1, ahead=True):
        taken += len(batch.shown)
        time.sleep(0.01)
        assert len(reads.begun) - taken <= 4


def test_without_reading_ahead_nothing_is_read_before_its_turn_and_no_thread_is_there(shown, monkeypatch):
    reads, taken, before = Reads(monkeypatch), 0, threading.active_count()
    for batch in stream.batches(shown, lambda size: 2, ahead=False):
        taken += len(batch.shown)
        assert len(reads.begun) == taken and threading.active_count() == before
    assert reads.threads == {threading.get_ident()}


def test_how_many_go_together_is_asked_when_a_batch_is_begun(shown):
    asked, answers = [], iter([1, 2, 4, 1000])
    sizes = [one for _, one in shown[:1]] * 9

    def at_once(size):
        asked.append(size)
        return next(answers)

    found = list(stream.batches([(shown[0][0], one) for one in sizes], at_once, ahead=False))
    assert [len(batch.shown) for batch in found] == [1, 2, 4, 2] and asked == [(64, 64)] * 4


def broken(shown, tmp_path, number):
    """``shown`` with one file replaced by what is no picture."""
    import dataclasses

    path = tmp_path / "odd one.png"
    path.write_bytes(b"no picture")
    sample, one = shown[number]
    return [*shown[:number], (dataclasses.replace(sample, path=path), one), *shown[number + 1 :]]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("number", [0, 30, COUNT - 1])
def test_a_broken_picture_is_named_in_its_turn_and_no_thread_is_left(shown, tmp_path, ahead, number):
    before, seen = threading.active_count(), []
    with pytest.raises(AtelierError, match=r"odd one\.png: this picture cannot be read"):
        for batch in stream.batches(broken(shown, tmp_path, number), lambda size: 1, ahead):
            seen += [sample.path.name for sample, _ in batch.shown]
    order = [sample.path.name for size in SIZES for sample, one in shown if one.size == size]
    at = order.index(shown[number][0].path.name)
    assert seen == order[:at], "all that came before it was encoded, and nothing that came after"
    assert threading.active_count() == before


def test_who_stops_waits_only_for_what_is_being_read(shown, monkeypatch):
    reads, before = Reads(monkeypatch), threading.active_count()
    with closing(stream.batches(shown, lambda size: 1, ahead=True)) as coming:
        next(coming)
        reads.wait.clear()
        time.sleep(0.05)
        begun = len(reads.begun)
        threading.Timer(0.1, reads.wait.set).start()
    assert len(reads.begun) <= begun + WORKERS, "what waited its turn is not begun any more"
    while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
        time.sleep(0.01)
    assert threading.active_count() == before
