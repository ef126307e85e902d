"""What NVIDIA says its cards reach at most in bf16 products, dense ones that are added up in fp32.

Cards are known by the whole name that the driver gives, for a laptop's or a smaller variant is another card under nearly the same
name. What is not listed has no nominal rate here, and is measured only.
"""

from __future__ import annotations

import re

SOURCES = {
    "A100": "https://www.nvidia.com/en-us/data-center/a100/",
    "H100": "https://www.nvidia.com/en-us/data-center/h100/",
    "H200": "https://www.nvidia.com/en-us/data-center/h200/",
    "L4": "https://www.nvidia.com/en-us/data-center/l4/",
    "L40S": "https://www.nvidia.com/en-us/data-center/l40s/",
    "GA102": "NVIDIA Ampere GA102 GPU Architecture, whitepaper, appendix",
    "AD102": "NVIDIA Ada GPU Architecture, whitepaper, appendix",
}
BF16: tuple[tuple[str, float, str], ...] = (
    (r"A100(-SXM4|-SXM|-PCIE|-PCIe| 80GB PCIe)?(-\d+GB)?", 312.0, "A100"),
    (r"H100 80GB HBM3|H100 SXM5.*", 989.4, "H100"),
    (r"H100 PCIe", 756.0, "H100"),
    (r"H100 NVL", 835.5, "H100"),
    (r"H200", 989.4, "H200"),
    (r"H200 NVL", 835.5, "H200"),
    (r"L4", 121.0, "L4"),
    (r"L40S", 362.05, "L40S"),
    (r"GeForce RTX 3090", 71.0, "GA102"),
    (r"GeForce RTX 3080", 59.5, "GA102"),
    (r"GeForce RTX 4090", 165.2, "AD102"),
    (r"GeForce RTX 4080", 97.5, "AD102"),
)
"""(pattern of the name without "NVIDIA", TFLOP/s, key of ``SOURCES``). Data sheets often say twice that: of sparse matrices."""


def nominal(device: str, dtype: str) -> float | None:
    """FLOP/s of the card that calls itself ``device``; None where it is unknown, or for another format than ``bf16``."""
    name = device.removeprefix("NVIDIA ").strip()
    found = next((rate for pattern, rate, _ in BF16 if re.fullmatch(pattern, name)), None)
    return found * 1e12 if found is not None and dtype == "bf16" else None
