"""What the files of a run are called; ``run.py`` says what is in them. Whatever reads or writes one takes its name from here."""

from __future__ import annotations

import re
from pathlib import Path

RUN_FILE = "run.json"
HISTORY_FILE = "history.jsonl"
MEASURED_FILE = "measured.jsonl"
STATE_FOLDER = "state"
STATE_FILE = f"{STATE_FOLDER}/state.safetensors"
SAMPLES_FOLDER = "samples"
GRIDS_FOLDER = "grids"
"""The pages of the grids that were drawn of the run."""
CELLS_FOLDER = "cells"
"""The pictures of which pages are made, in the folder of the grids."""
INPUTS_FILE = "inputs.json"
"""What decided the run: settings, pictures and captions, models."""
OLDER_STATE_FILE = f"{STATE_FOLDER}/before.safetensors"
"""The state before the newest, should that be damaged."""
OWNER_FILE = "owner.lock"
"""Locked by the process that trains the run."""

# What the files are called within a folder, to tell them from a person's.
SAMPLE = re.compile(r"-(?:(?P<epoch>\d{6})|step(?P<step>\d{8}))(?:-(?P<number>\d+))?\.png")
"""A sample's name behind that of the run."""
FILM = ".webp"
"""How the file ends that has all frames of a film of which a PNG of the same name shows one."""
FILM_OR_SAMPLE = re.compile(SAMPLE.pattern.replace(r"\.png", r"\.(?:png|webp)"))
PAGE = re.compile(r"(?P<page>grid-[0-9a-f]{12})(?:-(?P<part>\d+))?\.png")
"""A page of a grid; large ones go on as ``-2``, ``-3``."""
CELL = re.compile(r"[0-9a-f]{24}\.png")
FILM_OR_CELL = re.compile(r"[0-9a-f]{24}\.(?:png|webp)")
FAVOURITES = "favourites.json"
"""The marked cells of a run's grids."""


def film_of(picture: Path) -> Path:
    """Where the film lies of which ``picture`` is a frame."""
    return picture.with_suffix(FILM)
