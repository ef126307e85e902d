"""Trains on the tiny SD3, kills the training again and again, and writes down what is left; started by ``test_killed_runs.py``.

    python -I killed_runs.py FOLDER SEED KILLS

The model is loaded once, with one thread, and every attempt is a fork that is killed with SIGKILL, so that an attempt costs
less than a second. ``report.json`` in FOLDER says how every attempt ended; the files of the runs stay for the test to compare.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)  # before anything else: other threads do not survive a fork

TRAINED, KILLED, FAILED = "trained", "killed", "failed"


def load_conftest() -> Any:
    """The common ground of the tests, which makes the pack and the host importable."""
    spec = importlib.util.spec_from_file_location("atelier_conftest", Path(__file__).parents[2] / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures(folder: Path) -> Any:
    """Five pictures in two sizes, one of them held out: 3 steps an epoch at batch 2."""
    from lora_atelier.tests.noise_pictures import noise_picture
    from lora_atelier.training.config import SubsetConfig
    from lora_atelier.training.dataset import scan
    from lora_atelier.training.dataset.samples import Dataset

    folder.mkdir()
    for i in range(5):
        noise_picture((96, 64) if i < 3 else (64, 64), 8, i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture, {i % 2}", encoding="utf-8")
    config = SubsetConfig(
        "input/pictures", resolution=64, batch_size=2, bucket_step=32, repeats=2, flip=True, shuffle_captions=True,
        validation_share=0.2,
    )  # fmt: skip
    return Dataset(scan.scan(folder, config))


def recipes() -> dict[str, Any]:
    """Runs that differ in what their state holds."""
    from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, TrainingConfig

    network = NetworkConfig(rank=4, alpha=2.0, targets="attention", dropout=0.1, rank_dropout=0.1)
    length = LengthConfig(max_steps=17, save_every_steps=3, keep_last=3)
    sampled = LengthConfig(max_steps=17, save_every_steps=3, keep_last=3, sample_every_steps=8)
    adamw = OptimizerConfig(learning_rate=1e-2, accumulate=2)
    prodigy = OptimizerConfig("Prodigy", 1.0, schedule="linear", warmup_steps=2, optimizer_args="d0=0.001")
    common = {"network": network, "save_precision": "fp32", "seed": 11}
    return {
        "averaged": TrainingConfig("averaged", optimizer=adamw, length=sampled, ema_decay=0.9, **common),
        "adaptive": TrainingConfig("adaptive", optimizer=prodigy, length=length, **common),
    }


class Lab:
    """Everything that a training needs, loaded once."""

    def __init__(self, folder: Path):
        from lora_atelier.tests.training.conftest import load_model
        from lora_atelier.training import host, job, recorder

        self.folder, self.tiny, self.dataset = folder, load_model("sd3"), pictures(folder / "pictures")
        # Every step is reported and leaves a state, so that a kill is seldom far from a file that is being written.
        job.training.Callbacks = functools.partial(recorder.Callbacks, interval=0.0, snapshot_interval=0.0)  # type: ignore[misc, assignment]
        self.host, self.job = host, job

    def train(self, place: str, config: Any) -> None:
        """One whole attempt, as the node makes it, with its files under ``place``."""
        runs, loras = self.folder / place / "runs", self.folder / place / "loras"
        self.host.runs_folder, self.host.loras_folder = lambda: runs, lambda: loras
        steps = 1 if config.length.sample_every_steps else 0
        preview = self.job.Preview("", "", steps, 1.0, "euler", "normal", 0, 64, 64)
        t = self.tiny
        with torch.inference_mode():
            self.job.run_training(
                t.model, t.text, t.codec, self.dataset, config, preview=preview, graph={}
            )  # fmt: skip


class Attempt:
    """A forked training."""

    def __init__(self, lab: Lab, place: str, config: Any, before: Callable[[], None] = lambda: None):
        self.end, far = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.end)
            code = 1
            try:
                before()
                lab.train(place, config)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(far)

    def over(self, seconds: float) -> bool:
        """Waits so long; whether it has ended by itself meanwhile. The pipe closes when its process ends."""
        return bool(select.select([self.end], [], [], seconds)[0])

    def wait(self) -> str:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.end)
        if os.WIFSIGNALED(status):
            return KILLED if os.WTERMSIG(status) == signal.SIGKILL else FAILED
        return TRAINED if os.WEXITSTATUS(status) == 0 else FAILED

    def kill(self) -> str:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


def at_a_random_moment(lab: Lab, place: str, config: Any, chance: random.Random, seconds: float) -> str:
    """``seconds`` are those of an undisturbed run."""
    attempt = Attempt(lab, place, config)
    return attempt.wait() if attempt.over(chance.uniform(0.02, 0.6) * seconds) else attempt.kill()


def at_the_sight_of_a_temporary_file(lab: Lab, place: str, config: Any, chance: random.Random, seconds: float) -> str:
    """Kills while a file is being written, seen from outside: a new one, after some that were let pass."""
    pass_by, seen = chance.randrange(12), {path.name for path in (lab.folder / place).rglob("*.partial")}
    attempt = Attempt(lab, place, config)
    while not attempt.over(0):
        new = {path.name for path in (lab.folder / place).rglob("*.partial")} - seen
        if new and pass_by <= 0:
            return attempt.kill()
        pass_by -= len(new)
        seen |= new
    return attempt.wait()


def within_a_write(lab: Lab, place: str, config: Any, chance: random.Random, seconds: float) -> str:
    """The process kills itself when it is about to open, write to or rename a file of the run, so many times after its start.

    ``rename``: everything is in the temporary file, and nothing has its name yet; ``open``: an empty temporary file, or one that
    was written but not yet flushed; ``write``: half of the bytes.
    """
    kind = chance.choice(["os.rename", "open", "write"])
    left = chance.randrange(3, 50) if kind == "open" else chance.randrange(1, 12)

    def die() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def arm() -> None:
        if kind == "write":
            halve_writes(lab.folder / place, die)
            return
        mine = str(lab.folder / place)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == kind and isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(mine):
                die()

        sys.addaudithook(hook)

    return Attempt(lab, place, config, arm).wait()


def halve_writes(mine: Path, between: Callable[[], None]) -> None:
    """Tensors and lines of the run reach the disk in two halves, with ``between`` in the middle."""
    from lora_atelier.training import files
    from lora_atelier.training.runs import run, state

    def halves(path: Path, data: bytes) -> None:
        with files.replacing(path) as temporary, open(temporary, "wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            between()
            file.write(data[len(data) // 2 :])

    class Halved(files.Serialised):
        def write(self, path: Path, metadata: Any, durable: bool = True) -> int:
            halves(path, self.header(metadata) + self.data)
            return 0

    def lines(path: Path, text: str) -> None:
        with open(path, "ab", buffering=0) as file:
            file.write(text.encode()[: len(text) // 2])
            between()
            file.write(text.encode()[len(text) // 2 :])

    run.Serialised, state.Serialised, run.append_text = Halved, Halved, lines


WAYS = (at_a_random_moment, at_the_sight_of_a_temporary_file, within_a_write)


def left_behind(folder: Path) -> dict[str, Any]:
    """What a kill left on the disk: how far the run is, temporary files, and lines that were cut."""
    runs = list((folder / "runs").glob("*"))
    history = [line for path in runs if (path / "history.jsonl").is_file() for line in (path / "history.jsonl").open("rb")]
    return {
        "temporary": len(list(folder.rglob("*.partial"))),
        "lines": len(history),
        "cut": sum(not line.endswith(b"\n") for line in history),
    }


def main(folder: Path, seed: int, kills: int) -> None:
    lab, chance = Lab(folder), random.Random(seed)
    report: dict[str, Any] = {"attempts": [], "places": {}}
    for number, (name, config) in enumerate(recipes().items()):
        assert Attempt(lab, "warm", config).wait() == TRAINED  # fills the cache of latents and texts
        begun = time.monotonic()
        assert Attempt(lab, "whole", config).wait() == TRAINED
        seconds = time.monotonic() - begun
        wanted, killed, place = kills // 2 if number else kills - kills // 2, 0, 0
        while killed < wanted:
            # Each place is one run that is killed until it has come to its end, or enough kills were made.
            place += 1
            where = f"{name}-{place}"
            ended = KILLED
            while killed < wanted and ended == KILLED:
                way = WAYS[killed % len(WAYS)]
                ended = way(lab, where, config, chance, seconds)
                killed += ended == KILLED
                report["attempts"].append({"run": where, "way": way.__name__, "ended": ended, **left_behind(folder / where)})
            if ended == KILLED:
                ended = Attempt(lab, where, config).wait()
            assert ended == TRAINED, report
            report["places"][where] = name
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    conftest = load_conftest()
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    finally:
        conftest.pytest_unconfigure()
