"""Progress of a scan, and a cancel in the middle of it."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import index
from lora_atelier.training.dataset.from_nodes import subset_of
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.workers import AHEAD, Behind, Steps, in_parallel
from lora_atelier.training.errors import AtelierError
from PIL import Image

COUNT = 30


class Cancelled(Exception):
    """What the host raises."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(COUNT):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "set" / f"{number}.png")
    return tmp_path / "set"


@pytest.fixture
def looked(monkeypatch):
    """Names of the pictures that were opened."""
    names, real = [], index.look_into
    monkeypatch.setattr(index, "look_into", lambda path: names.append(path.name) or real(path))
    index._known.clear()
    return names


def progress_of(seen, stop_at=None):
    def progress(total):
        seen.append(total)

        def advance(step):
            seen.append(step)
            if step == stop_at:
                raise Cancelled

        return advance

    return progress


def test_every_picture_is_a_step_forward(folder):
    seen = []
    scan(folder, SubsetConfig("input/set"), progress=progress_of(seen))
    assert seen == [2 * COUNT, *range(1, 2 * COUNT + 1)]


@pytest.mark.parametrize("stop_at", [1, 10, COUNT, COUNT + 5])
def test_a_cancelled_scan_stops_soon_and_goes_on_where_it_was(folder, tmp_path, looked, stop_at):
    file = tmp_path / "index.json"
    with pytest.raises(Cancelled):
        scan(folder, SubsetConfig("input/set"), index=file, progress=progress_of([], stop_at))
    opened = set(looked)
    assert min(stop_at, COUNT) <= len(opened) <= min(stop_at + AHEAD, COUNT)
    assert len(json.loads(file.read_text())["pictures"]) >= min(stop_at, COUNT)
    looked.clear()
    index._known.clear()
    (subset,) = scan(folder, SubsetConfig("input/set"), index=file)
    stored_before = opened - set(looked)
    assert len(subset.samples) == COUNT and len(stored_before) >= min(stop_at, COUNT)


def test_a_cancelled_scan_forgets_nothing_of_an_earlier_one(folder, tmp_path, looked):
    file = tmp_path / "index.json"
    scan(folder, SubsetConfig("input/set"), index=file)
    Image.new("RGB", (32, 32), "blue").save(folder / "0.png")
    index._known.clear()
    with pytest.raises(Cancelled):
        scan(folder, SubsetConfig("input/set"), index=file, progress=progress_of([], 2))
    assert len(json.loads(file.read_text())["pictures"]) == COUNT


def test_a_broken_picture_leaves_what_was_learnt_before_it(folder, tmp_path, looked):
    file = tmp_path / "index.json"
    (folder / "zz.png").write_bytes(b"no picture")
    with pytest.raises(AtelierError, match=r"zz\.png"):
        scan(folder, SubsetConfig("input/set"), index=file)
    assert len(json.loads(file.read_text())["pictures"]) == COUNT


def test_a_cancel_while_the_focus_is_looked_for_ends_it(folder, tmp_path):
    pytest.importorskip("smartcrop")
    seen = []
    with pytest.raises(Cancelled):
        scan(folder, SubsetConfig("input/set", crop="focus"), progress=progress_of(seen, COUNT + 3))
    assert seen[-1] == COUNT + 3


def test_pictures_from_nodes_show_progress_and_can_be_cancelled(tmp_path):
    images, seen = [torch.rand(8, 32, 32, 3, generator=torch.Generator().manual_seed(0))], []
    subset_of(images, None, SubsetConfig("nodes/images"), tmp_path, progress=progress_of(seen))
    assert seen == [16, *range(1, 17)]
    with pytest.raises(Cancelled):
        subset_of(images, None, SubsetConfig("nodes/images"), tmp_path, progress=progress_of([], 3))


def test_the_results_keep_their_order_and_nothing_begins_after_a_failure():
    assert in_parallel(lambda n: n * n, range(50), Steps(None, 50)) == [n * n for n in range(50)]
    begun, gate = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 0:
            gate.wait(5)
            raise Cancelled
        gate.set()
        return number

    with pytest.raises(Cancelled):
        in_parallel(work, range(10_000), Steps(None, 10_000))
    assert len(begun) <= AHEAD


# Behind the back -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [True, False])
def test_work_behind_is_done_in_its_order_and_all_of_it(threaded):
    done, threads = [], set()
    with Behind(threaded, 3) as behind:
        for number in range(50):
            behind.do(lambda n=number: (done.append(n), threads.add(threading.get_ident())))
    assert done == list(range(50))
    assert (threading.get_ident() in threads) != threaded and len(threads) == 1


def test_no_more_work_waits_than_the_limit():
    gate, begun, given = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        assert gate.wait(30)

    def give(behind):
        for number in range(10):
            behind.do(slow)
            given.append(number)

    with Behind(True, 4) as behind:
        giver = threading.Thread(target=give, args=(behind,))
        giver.start()
        assert begun.wait(30)
        giver.join(0.2)
        assert len(given) <= 4 and giver.is_alive()
        gate.set()
        giver.join(30)
    assert len(given) == 10


def test_what_failed_behind_is_raised_and_nothing_is_begun_after_it():
    done = []

    def work(number):
        if number == 2:
            raise AtelierError("the disk is full")
        done.append(number)

    with pytest.raises(AtelierError, match="the disk is full"), Behind(True, 2) as behind:
        for number in range(1000):
            behind.do(lambda n=number: work(n))
    assert done[:2] == [0, 1] and len(done) <= 4
    with pytest.raises(AtelierError, match="the disk is full"), Behind(True, 9) as behind:
        behind.do(lambda: work(2))


def test_a_cancel_leaves_what_was_given_done_and_no_thread():
    done, gate = [], threading.Event()
    before = threading.active_count()
    with pytest.raises(Cancelled), Behind(True, 9) as behind:
        behind.do(lambda: done.append(gate.wait(30)))
        for number in range(5):
            behind.do(lambda n=number: done.append(n))
        gate.set()
        raise Cancelled
    assert done == [True, *range(5)] and threading.active_count() == before
