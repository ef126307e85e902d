"""Families whose blocks are divided among processes: the gradient of the whole model, and nothing left on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo.server import free_port
from lora_atelier.training.performance.team import MARK, SHARD

from .build import build
from .recipes import RECIPES
from .test_zoo import present

pytestmark = pytest.mark.cpu_only("on a GPU it takes one for each process")
WORK = Path(__file__).with_name("sharded_work.py")
CASES: dict[int, list[dict[str, Any]]] = {
    2: [
        {"name": "SD 1.5"}, {"name": "SDXL", "again": "some"}, {"name": "Flux dev", "again": "some"}, {"name": "Flux dev"},
        {"name": "Wan 2.1, one frame", "again": "all"}, {"name": "Qwen-Image"}, {"name": "Flux dev", "stored": "bfloat16"},
        {"name": "Z-Image", "stored": "float8_e4m3fn", "again": "all"}, {"name": "Wan 2.1, one frame", "held": "int8"},
        {"name": "HiDream I1"},
    ],
    4: [{"name": "Z-Image"}, {"name": "Flux dev", "again": "all"}, {"name": "Lumina 2", "stored": "bfloat16"}],
}  # fmt: skip
EVERY = [(size, number) for size, cases in CASES.items() for number in range(len(cases))]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, comfyui: object) -> dict[int, list[list[dict[str, Any]]]]:
    """What each process has found of each case, by the number of processes."""
    out = {}
    for size, cases in CASES.items():
        folder = tmp_path_factory.mktemp(f"of-{size}")
        told = json.dumps({"cases": cases, "out": str(folder)})
        shared = {
            **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()), MARK: "1", SHARD: "1",
        }  # fmt: skip
        processes = [
            subprocess.Popen(
                [sys.executable, str(WORK), told], env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        for process in processes:
            said, _ = process.communicate(timeout=900)
            assert process.returncode == 0, said
        each = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]
        out[size] = [list(case) for case in zip(*each, strict=True)]
    return out


def label(one: tuple[int, int]) -> str:
    case = CASES[one[0]][one[1]]
    return f"{one[0]}-{'-'.join(case.values())}"


@pytest.mark.parametrize("one", EVERY, ids=label)
def test_the_gradient_is_that_of_the_whole_model(found: dict[int, list[list[dict[str, Any]]]], one: tuple[int, int]) -> None:
    size, number = one
    for mine in found[size][number]:
        whole, divided = mine["losses"]
        assert divided == pytest.approx(whole, rel=1e-6) and mine["moved"] > 0
        # A UNet's skips: what a block's input is used for there is added to its gradient before or after the block's own part.
        assert mine["far"] <= (1e-6 if CASES[size][number]["name"] in ("SD 1.5", "SDXL") else 0.0)
        assert mine["asked"] and mine["alike"]


@pytest.mark.parametrize("one", EVERY, ids=label)
def test_each_holds_its_part_and_the_model_is_as_it_was(
    found: dict[int, list[list[dict[str, Any]]]], one: tuple[int, int]
) -> None:
    size, number = one
    for mine in found[size][number]:
        assert mine["as_it_was"] and mine["after"] == mine["left"] == 0
        # What does not go into equal parts is a row more for some.
        assert mine["blocks"] / size * 0.9 <= mine["held"] <= mine["blocks"] / size * 1.1


def test_blocks_that_read_control_pictures_alone_stay_whole(comfyui: object) -> None:
    """One process may have some in its batch and another none; then only one of them would ask for these blocks."""
    model = build(present(next(recipe for recipe in RECIPES if recipe.name == "OmniGen 2"))).model
    names = {module: name for name, module in model.base.diffusion_model.named_modules()}
    left = {names[block] for block in set(model.blocks()) - set(model.always_asked(model.blocks()))}
    assert left and {name.split(".")[0] for name in left} == {"ref_image_refiner"}
