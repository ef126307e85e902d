"""Device of the models, and its memory by the host's own measure."""

from __future__ import annotations

import gc
import logging
import platform

import comfy.model_management
import torch


def torch_device() -> torch.device:
    device: torch.device = comfy.model_management.get_torch_device()
    return device


def free_bytes(device: torch.device) -> int:
    """What is free on a device, by the host's own measure."""
    return int(comfy.model_management.get_free_memory(device))


def free_memory() -> None:
    """Give back what models that are no longer used have held."""
    gc.collect()
    comfy.model_management.soft_empty_cache()


def make_room(needed: int, device: torch.device) -> None:
    """Unload so many of the host's models from the device that ``needed`` bytes are free; it loads them again when asked."""
    with torch.inference_mode():  # moved weights stay what they were
        comfy.model_management.free_memory(needed, device)
    comfy.model_management.soft_empty_cache()


def memory() -> tuple[int, int]:
    """(in use, there is) in bytes, on the device that models work on."""
    management = comfy.model_management
    device = management.get_torch_device()
    total = int(management.get_total_memory(device))
    return total - int(management.get_free_memory(device)), total


def device_name(device: torch.device) -> str:
    """What a person calls the device, such as ``NVIDIA GeForce RTX 4090``; a CPU by its threads as well."""
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()} with {torch.get_num_threads()} threads"
    try:
        return str(comfy.model_management.get_torch_device_name(device))
    except Exception as error:  # every backend fails in its own way
        logging.getLogger("lora-atelier").info("the device has no name: %s", error)
        return str(device)
