"""What the files of a run are called; ``run.py`` says what is in them. Whatever reads or writes one takes its name from here."""

from __future__ import annotations

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
