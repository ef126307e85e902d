"""What each process of ``test_team`` does: trains a list of recipes on tiny models, alone or with the others.

Started by path, with JSON: ``{"base": folder, "pictures": folder, "runs": [{"name", "model", "recipe", "stop"}, ...]}``. A run
may have ``subset``, other settings of its pictures, and ``regularised``: they come once more, to hold the model to what it was.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any


def work(told: dict[str, Any]) -> None:
    import torch
    from lora_atelier.tests.training.conftest import load_model
    from lora_atelier.training import host, job
    from lora_atelier.training.config import SubsetConfig, TrainingConfig, from_dict
    from lora_atelier.training.dataset import scan
    from lora_atelier.training.dataset.samples import Dataset
    from lora_atelier.training.performance.team import team

    base = Path(told["base"])
    for name in ("runs", "loras", "cache"):
        setattr(host, f"{name}_folder", lambda name=name: base / name)
    usual: dict[str, Any] = {"resolution": 64, "batch_size": 1, "bucket_step": 32}

    def pictures(**changes: Any) -> Dataset:
        return Dataset(scan.scan(Path(told["pictures"]), SubsetConfig("input/pictures", **{**usual, **changes})))

    models: dict[str, Any] = {}
    for one in told["runs"]:
        if one["model"] not in models:
            models[one["model"]] = load_model(one["model"])
        t = models[one["model"]]
        recipe = from_dict(TrainingConfig, one["recipe"])
        preview = job.Preview("", "", one.get("preview", 0), 1.0, "euler", "normal", 0)
        if one.get("stop") and one.get("how") == "within" and team().rank == team().size - 1:
            t.model.base.diffusion_model.register_forward_pre_hook(stop_within(one["stop"]))
        elif one.get("stop") and team().rank == team().size - 1:
            stop_at(host, one["stop"], one.get("how", "killed"))
        dataset = pictures(**one.get("subset", {}))
        if one.get("regularised"):
            dataset += pictures(role="regularisation", repeats=1)
        before = traces(t.model.base.diffusion_model)
        try:
            with torch.inference_mode():
                job.run_training(t.model, t.text, t.codec, dataset, recipe, preview=preview, graph={})
        finally:
            if traces(t.model.base.diffusion_model) != before:
                (base / "changed").write_text(one["name"], encoding="utf-8")


def traces(network: Any) -> list[tuple[Any, ...]]:
    """Classes, hooks and numbers of a network's modules."""
    import torch

    with torch.inference_mode():
        return [
            (
                type(module), [len(value) for name, value in sorted(vars(module).items()) if "hooks" in name],
                "forward" in vars(module),
                [(name, hash(t.detach().numpy().tobytes())) for name, t in module.named_parameters(recurse=False)],
            )
            for module in network.modules()
        ]  # fmt: skip


def stop_within(step: int) -> Any:
    """A hook by which the network fails in so many passes that learn."""
    import torch

    seen = 0

    def hook(_: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += torch.is_grad_enabled() and inputs[0].device.type != "meta"
        if seen == step:
            raise RuntimeError("this process has failed")

    return hook


def stop_at(host: Any, step: int, how: str) -> None:
    """This process ends at a step: ``killed``, because it ``fails``, or of something that a person can mend (``refuses``)."""
    from lora_atelier.training.errors import AtelierError

    seen, real = 0, host.check_interrupt

    def check() -> None:
        nonlocal seen
        real()
        if sys._getframe(1).f_code.co_name == "unlike":  # pictures are compared before the training
            return
        seen += 1
        if seen == step and how == "fails":
            raise RuntimeError("this process has failed")
        if seen == step and how == "refuses":
            raise AtelierError("a picture is gone")
        if seen == step:
            os._exit(9)

    host.check_interrupt = check


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("ground", Path(__file__).resolve().parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    from lora_atelier.tests.training import team_work

    team_work.work(json.loads(sys.argv[1]))
