"""Which families' steps are the device's work alone, so that they can be recorded there, and that the others are found out.

The models stand on the device ``meta``, which nothing can be read from, and every copy to or from it is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from lora_atelier.training.objective import loss, noise
from lora_atelier.training.performance.device_work import DeviceWork, NotDeviceWork
from lora_atelier.training.tensors.tree import put_together, taken_apart
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..training.performance.on_meta import META, WithoutNumbers, memory_of_meta  # noqa: F401
from .build import Animal, build
from .recipes import RECIPES
from .test_edits import EDITS, controls, told
from .test_zoo import carriers, new_adapter, params, present, refuses

COPIES = "NotDeviceWork: it copies between cpu and meta"
NOT_ALONE = {
    "AuraFlow": COPIES, "HunyuanDiT 1.2": COPIES, "HunyuanDiT 1.0": COPIES, "Wan 2.1, one frame": COPIES,
    "Wan 2.2 5B, one frame": COPIES, "Mochi, one frame": COPIES,
    "LTX-Video, one frame": "NotDeviceWork: it makes numbers in main memory for the device",
    "HunyuanImage 2.1 distilled": "NotDeviceWork: it waits for a number of the device (nonzero)",
    "HiDream I1": "NotDeviceWork: it waits for a number of the device (index)",
    "HiDream O1": "NotDeviceWork: it waits for a number of the device (index)",
}  # fmt: skip
"""Recipes whose own code in the host does more in a step, and what; their runs stay without recordings. The copies are tables of
positions and frequencies, made anew in every pass."""


WAIT_TO_BE_TOLD = {"HiDream O1"}
"""Recipes of which the host reads a number of the device while it makes a conditioning for it."""


class Constants(TorchFunctionMode):
    """Finds constants that are made for a device from numbers in main memory, which ``meta`` makes out of nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and found.is_meta:
            raise NotDeviceWork("it makes numbers in main memory for the device")
        return found


@pytest.fixture(scope="module", params=params([r for r in RECIPES if not refuses(r)]))
def animal(request, comfyui) -> Iterator[Animal]:
    yield build(present(request.param))


def test_a_step_is_the_devices_work_alone(animal):
    from lora_atelier.training.host.in_place import out_of_place

    model = WithoutNumbers(animal.model)
    adapter = new_adapter(animal).to(META)
    layers = {name: dict(model.base.diffusion_model.named_modules())[name] for name in adapter.branches}
    assert layers.keys() <= carriers(animal).keys()
    with torch.inference_mode(False), torch.enable_grad(), adapter.attached(layers):
        x0, sigma = animal.latents(2).to(META), animal.levels(2).to(META)
        e = torch.randn_like(x0)
        x, wanted = noise.noisy(model.prediction, x0, e, sigma), noise.target(model.prediction, x0, e, sigma)
        here = animal.latents(2)
        texts = [animal.model.condition(animal.conditioning(i), here[i : i + 1], animal.size) for i in range(2)]
        tensors, form = taken_apart(animal.model.merged(texts))
        given = put_together([tensor.to(META) for tensor in tensors], form)

        def step() -> None:
            loss.batch_loss(model.answer(x, sigma, given), wanted).backward()

        try:
            with Constants(), DeviceWork(), out_of_place():
                step()
            found = ""
        except (NotDeviceWork, NotImplementedError, RuntimeError) as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
    assert found == NOT_ALONE.get(animal.recipe.name, "")


@pytest.mark.parametrize("shown", params(EDITS))
def test_so_it_is_beside_control_pictures(shown, comfyui):
    """Their latents come from main memory with the texts, in lists."""
    editor = build(present(shown))
    model, adapter = WithoutNumbers(editor.model), new_adapter(editor).to(META)
    layers = {name: dict(model.base.diffusion_model.named_modules())[name] for name in adapter.branches}
    texts = [told(editor, number, [one.cpu() for one in controls(editor)]) for number in range(2)]
    x, sigma, here = editor.latents(2).to(META), editor.levels(2).to(META), editor.latents(2)
    with torch.inference_mode(False), torch.enable_grad(), adapter.attached(layers):
        given = model.merged([model.condition(text, here[i : i + 1].to(META), editor.size) for i, text in enumerate(texts)])
        assert {tensor.device.type for tensor in taken_apart(given)[0]} == {"meta"}
        with Constants(), DeviceWork():
            loss.batch_loss(model.answer(x, sigma, given), torch.zeros_like(x)).backward()


def test_conditionings_are_made_without_waiting_for_the_device(animal):
    """From texts in main memory, where the cache has them: Mochi's counts the words of its mask there."""
    model, here = WithoutNumbers(animal.model), animal.latents(2)
    waits = False
    with torch.inference_mode(False):
        try:
            model.merged([model.condition(animal.conditioning(i), here[i : i + 1].to(META), animal.size) for i in range(2)])
        except (NotImplementedError, RuntimeError):
            waits = True
    assert waits == (animal.recipe.name in WAIT_TO_BE_TOLD)
