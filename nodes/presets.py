"""Which preset suits a model family."""

from __future__ import annotations

SUITED = "suited to the model"
"""The entry of the preset list that asks for the loaded model's family."""
UNKNOWN = "SD1.5"
"""The most careful preset, for a file whose family nobody knows: it asks for no number format and computes nothing twice."""
TRANSFORMERS = "SD3"
"""For families without a preset of their own, which are flow transformers nearly all."""
FAMILIES = {
    "SD15": "SD1.5", "SD15_instructpix2pix": "SD1.5", "SD20": "SD1.5", "SD21UnclipL": "SD1.5", "SD21UnclipH": "SD1.5",
    "SDXL": "SDXL", "SDXLRefiner": "SDXL", "SDXL_instructpix2pix": "SDXL", "SSD1B": "SDXL", "Segmind_Vega": "SDXL",
    "KOALA_700M": "SDXL", "KOALA_1B": "SDXL", "SD3": "SD3", "Flux": "Flux", "FluxInpaint": "Flux", "FluxSchnell": "Flux",
}  # fmt: skip
"""The host's names of families, and the presets in ``js/presets.json``."""


def preset_for(family: str | None) -> tuple[str, str]:
    """(preset, a sentence on why) for the host's name of a family; None means that it knows none."""
    if family is None:
        return UNKNOWN, f"ComfyUI does not know this model's family; the values of {UNKNOWN} were taken, the most careful ones."
    if family in FAMILIES:
        return FAMILIES[family], f"The model is of the family {family}."
    return TRANSFORMERS, f"The model is of the family {family}, which has no preset; the values of {TRANSFORMERS} were taken."
