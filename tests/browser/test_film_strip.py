"""Samples that are films, in Train LoRA's panel on the real canvas: they move, and open as films."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lora_atelier.tests.browser.driver import browser, drive, look, ours
from lora_atelier.tests.browser.test_watch_training import earlier_run
from lora_atelier.tests.host import support
from lora_atelier.training.dataset import moving
from lora_atelier.training.runs.layout import film_of
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

RUN = "filmed"


def samples_of(host: support.Host) -> None:
    """A ball that crosses the picture, in an earlier run's samples; the first of them stands still."""
    folder = host.base / "output" / "lora-atelier" / earlier_run(host, RUN) / "samples"
    folder.mkdir()
    for epoch in range(4):
        frames = []
        for at in range(17):
            frame = Image.new("RGB", (160, 96), (40, 60 + 40 * epoch, 120))
            ImageDraw.Draw(frame).ellipse((8 * at, 30, 8 * at + 30, 60), fill=(250, 200, 60))
            frames.append(frame)
        path, info = folder / f"{RUN}-{epoch:06d}.png", PngInfo()
        info.add_text("parameters", json.dumps({"prompt": "a ball"}))
        if epoch:
            moving.save(film_of(path), frames, 16)
        frames[8].save(path, pnginfo=info)


@pytest.fixture(scope="module")
def seen(comfyui: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw."""
    browser()
    host = support.host("new")
    samples_of(host)
    return drive("film_strip", host, tmp_path_factory.mktemp("shots"), run=RUN, **look(False))


def test_samples_that_are_films_move_in_the_strip(seen: dict[str, Any]) -> None:
    names = [f"{RUN}-000000.png", *(f"{RUN}-{epoch:06d}.webp" for epoch in (1, 2, 3))]
    assert [one["shown"] for one in seen["films"]] == [one["opened"] for one in seen["films"]] == names
    assert ours(seen) == []


def test_the_strip_is_not_still(seen: dict[str, Any]) -> None:
    assert seen["looks"] > 1
