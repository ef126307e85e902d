"""Room for what a run keeps, on one disk with its LoRA files or on another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from lora_atelier.training.estimate import disk

GB = 10**9
RUNS, LORAS = Path("/runs/not/there/yet"), Path("/loras")


@pytest.fixture(params=[False, True], ids=["one disk", "two disks"])
def apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether what lies at the root, where a folder that is not there yet will lie, is another disk than that of the LoRAs."""
    monkeypatch.setattr(Path, "exists", lambda path: path in (Path("/"), LORAS))
    devices = {Path("/"): 1, LORAS: 2 if request.param else 1}
    monkeypatch.setattr(disk, "os", SimpleNamespace(stat=lambda path: SimpleNamespace(st_dev=devices[path])))
    return request.param


@pytest.mark.parametrize(("free", "warned"), [(None, False), (6 * GB, False), (6 * GB - 1, True)])
def test_what_a_run_keeps_counts_where_it_lies(
    apart: bool, free: int | None, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The state before the newest stays as well."""
    monkeypatch.setattr(disk, "room_on_disk", lambda folder: free if folder == RUNS else None)
    beside, said = disk.beside_loras(RUNS, LORAS, 3 * GB)
    assert beside == (0 if apart else 3 * GB)
    assert len(said) == (apart and warned)
    assert all(f"about 6.0 GB in {RUNS}" in one for one in said)


def test_what_nobody_knows_is_not_guessed(apart: bool) -> None:
    assert disk.beside_loras(RUNS, LORAS, None) == (None, [])
