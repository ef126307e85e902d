"""Names of the starting points that Configure LoRA's list offers."""

from __future__ import annotations

from ..training.starting import points

OWN = "own settings"
SUITED = "suited to the model"
"""The entry of the preset list that asks for the loaded model's family; a style is taken for the subject."""
RECIPES = (
    "R1 Ink & Lore (Flux style)", "R2 Style guide (SDXL)", "R3 Hosted trainer (SD1.5)", "R4 Real-life face (SD1.5)",
    "R4 Real-life face, DAdaptAdam", "R4 Real-life face, Adafactor", "R5 SDXL subject, Prodigy", "R5 SDXL subject, Adafactor",
)  # fmt: skip
"""Their values are in ``js/presets.json``, from which the canvas fills the widgets of Configure LoRA."""
ALIASES = {"SD1.5": "SD 1.5", "SD3": "SD 3.5 medium", "Flux": "Flux dev"}
"""Names that older workflows may hold."""


def preset_names() -> list[str]:
    """What the list of Configure LoRA offers, in its order."""
    models = [name for name in points.catalogue().models if name != points.OTHER]
    subjects = [f"{SUITED}: {subject}" for subject in points.catalogue().subjects]
    return [SUITED, *subjects, OWN, *models, *RECIPES, *ALIASES]


def subject_of(preset: str) -> str:
    """The subject that an entry of the list names; style where it names none."""
    _, _, subject = preset.partition(": ")
    return subject if subject in points.catalogue().subjects else "style"
