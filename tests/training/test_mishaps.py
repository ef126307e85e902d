"""What goes wrong while a run trains, measures, saves or samples: the last good state stands, and it goes on from there."""

from __future__ import annotations

import dataclasses
import errno
import functools
import gc
import json
import os
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from lora_atelier.training import errors, files, host, job, loop, recorder, step, step_context
from lora_atelier.training.config import LengthConfig, OptimizerConfig, SubsetConfig
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.estimate import step_time
from lora_atelier.training.runs.run import Run

from .runs.test_resume import assert_the_same, with_validation  # noqa: F401
from .test_job import NO_PREVIEW, Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401

PREVIEW = dataclasses.replace(NO_PREVIEW, steps=1, prompt="picture 0", width=32, height=32)


def run_of(name: str) -> Run:
    return Run(name, host.runs_folder(), host.loras_folder())


def no_memory() -> torch.Tensor:
    """The real error of a device that cannot give what is asked for."""
    return torch.empty(2**58, dtype=torch.float32)


# Memory -------------------------------------------------------------------------------------------------------------------


def test_out_of_memory_within_a_step_keeps_the_steps_before_and_says_what_to_change(tiny, dataset, monkeypatch):  # noqa: F811
    t = tiny("sd3")
    least = {"gradient_checkpointing": True, "offload_blocks": 1.0}  # there is nothing left to fall back on
    whole = go(t, dataset, recipe("whole", **least))
    real, seen, kept, alive = step.prepare, [], [], []

    def too_much(*given):
        seen.append(given)
        if len(seen) >= 6:
            activations = torch.zeros(1000)
            kept.append(weakref.ref(activations))
            no_memory()
        return real(*given)

    save = Run.save_state
    with monkeypatch.context() as patch:
        patch.setattr(step_context, "prepare", too_much)
        patch.setattr(Run, "save_state", lambda run, at: alive.extend(r() is not None for r in kept) or save(run, at))
        with pytest.raises(AtelierError, match=r"out of memory after step 5.*batch_size"):
            go(t, dataset, recipe("pieces", **least))
    assert alive and not any(alive), "what the failed step held is given back before the state is saved"
    assert run_of("pieces").load_state().step == 5
    assert (host.loras_folder() / "pieces" / "pieces-step00000005.safetensors").is_file()
    assert_the_same(whole, go(t, dataset, recipe("pieces", **least)))


def test_a_failure_within_the_optimizers_step_does_not_count_as_trained(tiny, dataset, monkeypatch):  # noqa: F811
    """Some weights have moved then and others have not; such a state is never kept."""
    t = tiny("sd3")
    config = {"optimizer": OptimizerConfig("SGD", 1e-2, schedule="constant")}
    whole = go(t, dataset, recipe("whole", **config))
    real, count = torch.optim.SGD.step, iter(range(1, 100))

    def breaks_off(self, *given):
        real(self, *given)
        if next(count) == 5:
            no_memory()

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", breaks_off)
        with pytest.raises(AtelierError, match="out of memory"):
            go(t, dataset, recipe("pieces", **config))
    assert run_of("pieces").load_state().step == 3, "the end of the epoch before"
    assert_the_same(whole, go(t, dataset, recipe("pieces", **config)))


@pytest.mark.parametrize(("at", "saved"), [(0, []), (3, ["pieces-000001.safetensors"])])
def test_out_of_memory_while_sampling_speaks_of_the_preview_and_the_run_goes_on(tiny, dataset, monkeypatch, at, saved):  # noqa: F811
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(job.saver.Saver, "sample", lambda _self, _epoch, step: no_memory() if step == at else None)
        with pytest.raises(AtelierError, match=rf"out of memory after step {at}\..*smaller previews"):
            go(t, dataset, recipe("pieces"), PREVIEW)
    assert [s.path.name for s in run_of("pieces").saved()] == saved
    assert_the_same(whole, go(t, dataset, recipe("pieces")))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory"), torch.OutOfMemoryError("full")])
def test_every_kind_of_missing_memory_is_known(error):
    assert errors.is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()])
def test_other_errors_are_not_taken_for_it(error):
    assert not errors.is_out_of_memory(error)


# The end of an epoch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True], ids=["of an epoch", "of the run"])
def test_a_cancel_while_it_measures_ends_at_once_and_loses_nothing(
    tiny, with_validation, monkeypatch, interrupt, last  # noqa: F811
):  # fmt: skip
    """It is looked for at every level of every batch, and what belongs to the end of that epoch is done when the run goes on."""
    t = tiny("sd3")
    length = LengthConfig(max_steps=11, when_enough="say")
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        looks = Stop(patch, 10**9, interrupt)
        whole = go(t, with_validation, recipe("whole", length=length))
    assert looks.seen > 11 + 8, "steps, and levels"
    with monkeypatch.context() as patch:
        # The last look of all is within the last measuring; the fifth is within the first one, since an epoch has 2 or 3 steps.
        Stop(patch, looks.seen if last else 5, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, with_validation, recipe("pieces", length=length))
    state = run_of("pieces").load_state()
    assert state.due and state.step == (11 if last else Plan(with_validation, 7).steps_per_epoch)
    assert not run_of("pieces").finished()
    pieces = go(t, with_validation, recipe("pieces", length=length))
    assert pieces.epochs.files[-1].kind == "last"
    assert_the_same(whole, pieces)


def test_a_full_disk_at_the_last_file_does_not_end_the_run_without_it(tiny, dataset, monkeypatch):  # noqa: F811
    """The state may lie on another disk, where there is room."""
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole"))
    real = os.replace

    def full(written, path):
        if host.loras_folder() in Path(path).parents and not Path(path).name.startswith("pieces-00000"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(written, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(AtelierError, match=r"pieces.*disk is full; make room"):
            go(t, dataset, recipe("pieces"))
    assert not run_of("pieces").finished()
    pieces = go(t, dataset, recipe("pieces"))
    assert [f.path.name for f in pieces.epochs.files] == [f.path.name.replace("whole", "pieces") for f in whole.epochs.files]
    assert_the_same(whole, pieces)


@pytest.mark.parametrize("picture", [0, 1, 5], ids=["before the first step", "on the way", "at the end"])
def test_a_cancel_while_a_sample_is_drawn_keeps_the_file_that_it_shows(tiny, dataset, monkeypatch, picture):  # noqa: F811
    """Seven steps, samples before the first and after 2, 3, 4, 6 and 7: the step's file stays in the grid, and a run finished."""
    import comfy.model_management as management

    t = tiny("sd3")
    length = LengthConfig(max_steps=7, save_every_steps=2)
    real, drawn = host.Model.sample, []
    texts = functools.cache(t.text.for_sampling)
    monkeypatch.setattr(host.TextEncoder, "for_sampling", lambda _, text, pictures=(): texts(text))

    def cancelled(self, *given, **named):
        if len(drawn) == picture:
            management.interrupt_current_processing(True)
        drawn.append(1)
        return real(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(host.Model, "sample", cancelled)
        with pytest.raises(management.InterruptProcessingException):
            go(t, dataset, recipe("pieces", length=length), PREVIEW)
    management.interrupt_current_processing(False)
    run = run_of("pieces")
    assert [s.kind for s in run.saved()] == ["step", "epoch", "step", "epoch", "last"][:picture]
    assert run.finished() == (picture == 5)
    pieces = go(t, dataset, recipe("pieces", length=length), PREVIEW)
    assert [(f.step, f.kind) for f in pieces.epochs.files] == [(2, "step"), (3, "epoch"), (4, "step"), (6, "epoch"), (7, "last")]
    names = {p.name for p in (run.folder / "samples").iterdir()}
    assert {"pieces-step00000002.png", "pieces-000001.png", "pieces-step00000004.png", "pieces-000002.png"} <= names


# Numbers ------------------------------------------------------------------------------------------------------------------


def test_a_cancel_before_lost_numbers_were_noticed_keeps_no_such_state(
    tiny, dataset, monkeypatch, interrupt  # noqa: F811
):  # fmt: skip
    """With two batches to a step the weights may still be sound while the loss is gone: the run must not go on beyond it."""
    t = tiny("sd3")
    config = {"optimizer": OptimizerConfig(learning_rate=1e-2, accumulate=2), "length": LengthConfig(epochs=3, save_every=3)}
    whole = go(t, dataset, recipe("whole", **config))
    monkeypatch.setattr(job.training, "Callbacks", functools.partial(recorder.Callbacks, interval=1e9))
    only_training_checks(monkeypatch)
    real, count = step.losses.batch_loss, iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(step.losses, "batch_loss", lambda *given: real(*given) * (float("inf") if next(count) == 5 else 1.0))
        Stop(patch, 6, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, dataset, recipe("pieces", **config))
    assert run_of("pieces").load_state().step <= 4
    assert not list((host.loras_folder() / "pieces").glob("*.safetensors"))
    assert_the_same(whole, go(t, dataset, recipe("pieces", **config)))


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_infinite_and_missing_numbers_are_named_with_their_step(tiny, dataset, monkeypatch, number):  # noqa: F811
    t = tiny("sd3")
    real, count = step.losses.batch_loss, iter(range(1, 100))
    monkeypatch.setattr(step.losses, "batch_loss", lambda *given: real(*given) * (number if next(count) == 5 else 1.0))
    with pytest.raises(AtelierError, match=r"NaN or infinite at step 5\..*Lower the learning rate"):
        go(t, dataset, recipe())
    assert run_of("tiny").load_state().step <= 4
    assert all(v.isfinite().all() for v in run_of("tiny").load_state().adapter.values())


# Files --------------------------------------------------------------------------------------------------------------------


def test_a_picture_that_vanishes_while_training_is_named_and_the_run_goes_on_once_it_is_back(
    tiny, dataset, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    """With pictures that are encoded in their step, so that the file is needed then."""
    t = tiny("sd3")
    folder = tmp_path / "pictures"
    shutil.copytree(dataset.subsets[0].samples[0].path.parent, folder)
    config = SubsetConfig("input/x", resolution=64, bucket_step=32, batch_size=1, crop="random", variants=0)
    pictures = Dataset(scan.scan(folder, config))
    whole = go(t, pictures, recipe("whole", length=LengthConfig(epochs=2)))
    only_training_checks(monkeypatch)
    looks, real = iter(range(1, 100)), host.check_interrupt

    def vanish() -> None:
        real()
        if next(looks) == 6:
            folder.rename(tmp_path / "elsewhere")

    with monkeypatch.context() as patch:
        patch.setattr(host, "check_interrupt", vanish)
        with pytest.raises(AtelierError, match=r"\.png: this picture cannot be read.*"):
            go(t, pictures, recipe("pieces", length=LengthConfig(epochs=2)))
    (tmp_path / "elsewhere").rename(folder)
    assert run_of("pieces").load_state().step == 5
    assert_the_same(whole, go(t, pictures, recipe("pieces", length=LengthConfig(epochs=2))))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_record_that_is_damaged_meanwhile_hides_no_other_error(tiny, dataset, monkeypatch):  # noqa: F811
    """Neither what ended the run nor a cancel, though the run would note its pace and the failure there."""
    real, count = step.losses.batch_loss, iter(range(100))

    def fail(*given):
        if next(count) == 4:
            (run_of("tiny").folder / "run.json").write_text("{")
            raise RuntimeError("what really happened")
        return real(*given)

    monkeypatch.setattr(step_time, "ENOUGH", 1)
    monkeypatch.setattr(step.losses, "batch_loss", fail)
    with pytest.raises(RuntimeError, match="what really happened"):
        go(tiny("sd3"), dataset, recipe(length=LengthConfig(max_steps=9)))


def test_files_that_are_moved_away_meanwhile_are_named(tiny, dataset, monkeypatch):  # noqa: F811
    real = job.training.train

    def moved(session, run, callbacks, team):
        real(session, run, callbacks, team)
        run.lora_folder.rename(run.lora_folder.with_name("elsewhere"))

    monkeypatch.setattr(job.training, "train", moved)
    with pytest.raises(AtelierError, match="tiny: its files are gone from "):
        go(tiny("sd3"), dataset, recipe(length=LengthConfig(max_steps=1)))


def test_a_disk_without_room_for_the_history_is_named(tiny, dataset):  # noqa: F811
    folder = host.runs_folder() / "tiny"
    folder.mkdir(parents=True)
    (folder / "history.jsonl").symlink_to("/dev/full")
    with pytest.raises(AtelierError, match=r"history\.jsonl: the disk is full; make room and queue again"):
        go(tiny("sd3"), dataset, recipe())


def test_lines_are_added_whole_or_not_at_all(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "rows.jsonl"
    files.append_text(path, "first\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # the system writes four bytes more and then refuses
    try:
        with pytest.raises(OSError):
            files.append_text(path, "second\n" * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "first\n"
    files.append_text(path, "second\n")
    assert path.read_text() == "first\nsecond\n"


@pytest.mark.parametrize("said", ["No space left on device (os error 28)", "There is not enough space (os error 112)"])
def test_a_full_disk_is_known_in_the_words_of_every_system(tmp_path, said):
    with pytest.raises(AtelierError, match=r"a\.txt: the disk is full"), files.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError(f"I/O error: {said}")
    assert not list(tmp_path.iterdir())


def test_a_history_that_was_cut_within_a_line_is_read_up_to_it(tmp_path):
    run = Run.begin("ink", tmp_path / "runs", tmp_path / "loras")
    rows = [{"step": step, "epoch": 1, "loss": 0.5, "rate": 0.1} for step in (1, 2, 3)]
    run.append_history(rows)
    path = run.folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert run.cut_history(9) == rows[:2]
    run.append_history(rows[2:])
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_nothing_outlives_a_step(tiny, dataset, monkeypatch):  # noqa: F811
    """The graph of a step is gone before the next one begins."""
    graphs: list[weakref.ref] = []
    real = step.loss_of

    def watched(*given):
        assert not any(graph() is not None for graph in graphs)
        loss = real(*given)
        graphs.append(weakref.ref(loss))
        return loss

    monkeypatch.setattr(loop, "loss_of", watched)
    gc.disable()
    try:
        go(tiny("sd3"), dataset, recipe(length=LengthConfig(max_steps=3)))
    finally:
        gc.enable()
    assert len(graphs) == 3
