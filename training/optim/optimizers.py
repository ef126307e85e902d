"""Optimizers by the name in the widget. All come from libraries; here they are found, checked, built and driven."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..config import OptimizerConfig, optimizer_arguments
from ..errors import AtelierError

Groups = Sequence[tuple[Iterable[nn.Parameter], float]]
"""(parameters, their peak rate) for every part that is trained."""


@dataclass(frozen=True)
class OptimizerSource:
    """Where an optimizer comes from."""

    module: str
    attribute: str
    package: str
    """What pip installs; empty for what is always there."""
    instead: str = ""
    """What to choose where the package is missing."""
    defaults: Mapping[str, optimizer_arguments.Value] = field(default_factory=dict)
    """Settings that differ from the library's own defaults, unless the optimizer arguments name them."""
    own: frozenset[str] = frozenset()
    """Arguments that other widgets stand for, or that do nothing."""
    on_cuda: bool = False
    """Whether it runs on NVIDIA GPUs alone."""


WARM: dict[str, dict[str, optimizer_arguments.Value]] = {
    "Prodigy": {"safeguard_warmup": True, "betas": (0.9, 0.99), "d0": 1e-4},
    "DAdaptAdam": {"d0": 1e-4},
    "DAdaptAdamW": {"d0": 1e-4},
}
"""Settings where there is a warmup, unless the optimizer arguments name them.

These optimizers begin with a rate d0 of 1e-6 and raise it by how far the weights have come, for which a warmup keeps them from
moving: the factor of the rate goes once into the distance and once more into its weight, so that d stays where it is until the
warmup is over and far beyond (Prodigy with the safeguard and bias correction: hundreds of steps at betas of 0.9 and 0.999). So
d begins at the usual rate of a LoRA, and the warmup leads up to that. The rest is what Prodigy's authors advise for diffusion
models: the safeguard, without which d may come out too high after a warmup, and the second beta.
"""
PLAIN = "AdamW with a learning rate such as 1e-4"
SOURCES: dict[str, OptimizerSource] = {
    "AdamW": OptimizerSource("torch.optim", "AdamW", ""),
    "AdamW8bit": OptimizerSource(
        "bitsandbytes.optim", "AdamW8bit", "bitsandbytes>=0.43", "AdamW, its full-precision twin",
        own=frozenset({"args", "optim_bits", "amsgrad", "block_wise"}), on_cuda=True,
    ),
    "Lion": OptimizerSource("pytorch_optimizer", "Lion", "pytorch-optimizer>=4.1", "AdamW with ten times the learning rate"),
    "Prodigy": OptimizerSource("prodigyopt", "Prodigy", "prodigyopt>=1.1.2", PLAIN, {"use_bias_correction": True}),
    "DAdaptAdam": OptimizerSource("dadaptation", "DAdaptAdam", "dadaptation>=3.2", PLAIN),
    "DAdaptAdamW": OptimizerSource("dadaptation", "DAdaptAdam", "dadaptation>=3.2", PLAIN, {"decouple": True}),
    "Adafactor": OptimizerSource(
        "transformers.optimization", "Adafactor", "transformers>=4.50.3", "AdamW",
        {"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "AdamWScheduleFree": OptimizerSource(
        "schedulefree", "AdamWScheduleFree", "schedulefree>=1.4", "AdamW with the cosine schedule",
        own=frozenset({"warmup_steps"}),
    ),
    "CAME": OptimizerSource("pytorch_optimizer", "CAME", "pytorch-optimizer>=4.1", "Adafactor, which saves as much memory"),
    "SGD": OptimizerSource("torch.optim", "SGD", "", defaults={"momentum": 0.9}),
    "Lion8bit": OptimizerSource(
        "bitsandbytes.optim", "Lion8bit", "bitsandbytes>=0.43",
        "Lion, its full-precision twin, or AdamW with ten times the learning rate",
        own=frozenset({"args", "block_wise"}), on_cuda=True,
    ),
    "ProdigyPlusScheduleFree": OptimizerSource(
        "prodigyplus", "ProdigyPlusScheduleFree", "prodigy-plus-schedule-free>=2.0", PLAIN,
        own=frozenset({"fused_back_pass", "stochastic_rounding"}),
    ),
    "Muon": OptimizerSource(
        "pytorch_optimizer", "Muon", "pytorch-optimizer>=4.1", "AdamW with the same learning rate", {"use_adjusted_lr": True},
        own=frozenset({"adamw_lr", "adamw_wd", "ns_coeffs", "ns_method", "ns_reset_steps"}),
    ),
}  # fmt: skip


BY_MATRIX = {"Adafactor", "CAME", "ProdigyPlusScheduleFree", "Muon"}
"""Optimizers that look at rows and columns, or at a matrix as one."""
BY_MATRIX_IF = {"use_gc", "adanorm", "cautious", "slice_p", "percentile_clipping", "min_8bit_size"}
"""Arguments with which the others look at each matrix by itself."""


def goes_by_number(config: OptimizerConfig) -> bool:
    """Whether each number's step depends on its own gradients (and on sums over all) alone, wherever a matrix begins and ends."""
    return config.name not in BY_MATRIX and not BY_MATRIX_IF & config.args.keys()


def build(config: OptimizerConfig, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer over ``groups``, whose parameters already lie on their devices. A part with rate 0 is not trained.

    Raises AtelierError where a library is missing or has no kernels for the device, or takes no such arguments.
    """
    parts = [(list(parameters), rate) for parameters, rate in groups if rate > 0]
    parts = [(parameters, rate) for parameters, rate in parts if parameters]
    if not parts:
        raise AtelierError("learning rate: every part that could be trained has the rate 0; give one of them a rate.")
    make, settings = _constructor(config), _settings(config)
    devices = {p.device.type for parameters, _ in parts for p in parameters}
    _check_devices(config, devices)
    if config.name == "AdamW" and not settings.get("foreach"):
        settings.setdefault("fused", devices <= {"cpu", "cuda"})
    if config.name == "ProdigyPlusScheduleFree" and len(parts) == 1:
        settings["split_groups"] = False  # which it would print that it does
    try:
        optimizer: torch.optim.Optimizer = make(_groups(config, parts), **settings)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise AtelierError(f"optimizer arguments: {config.name} refuses them: {error}.") from error
    if config.name == "AdamWScheduleFree":
        optimizer.train()  # type: ignore[attr-defined]
    if config.name == "ProdigyPlusScheduleFree":
        _keep_formats(optimizer)
    return optimizer


def _keep_formats(optimizer: torch.optim.Optimizer) -> None:
    """States come back from a saved run in their own number format: torch gives all of them that of the parameters, and what
    is added up in bf16 goes on otherwise in fp32."""
    formats: list[dict[str, torch.dtype]] = []

    def before(_: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        kept = [saved["state"].get(number, {}) for group in saved["param_groups"] for number in group["params"]]
        formats[:] = [{key: v.dtype for key, v in values.items() if isinstance(v, torch.Tensor)} for values in kept]

    def after(loaded: torch.optim.Optimizer) -> None:
        parameters = [p for group in loaded.param_groups for p in group["params"]]
        for p, dtypes in zip(parameters, formats, strict=True):
            for key, dtype in dtypes.items():
                loaded.state[p][key] = loaded.state[p][key].to(dtype)

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)


def check(config: OptimizerConfig, device: str | None = None) -> None:
    """What ``build`` would refuse, as far as it can be said without parameters; ``device``: the type of theirs, if known."""
    _settings(config)
    if device is not None:
        _check_devices(config, {device})


def _check_devices(config: OptimizerConfig, devices: set[str]) -> None:
    if devices != {"cuda"} and (said := needs_cuda(config)):
        raise AtelierError(said)


def needs_cuda(config: OptimizerConfig) -> str:
    """What to say where there is no NVIDIA GPU; empty for what runs elsewhere too."""
    source = SOURCES[config.name]
    return f"optimizer: {config.name} needs a CUDA GPU; choose {source.instead}." if source.on_cuda else ""


def _constructor(config: OptimizerConfig) -> Callable[..., torch.optim.Optimizer]:
    source = SOURCES[config.name]
    try:
        make: Callable[..., torch.optim.Optimizer] = getattr(importlib.import_module(source.module), source.attribute)
        return make
    except Exception as error:  # a broken CUDA set-up raises more than ImportError
        raise AtelierError(
            f"optimizer: {config.name} needs the package {source.package.split('>')[0]}, which cannot be loaded ({error}). "
            f'Install it for ComfyUI\'s Python with: pip install "{source.package}", or choose {source.instead}.'
        ) from error


def _settings(config: OptimizerConfig) -> dict[str, Any]:
    """The constructor's arguments besides the parameters: defaults of this pack, then widgets, then the optimizer arguments."""
    source = SOURCES[config.name]
    given = optimizer_arguments.check(config.name, _constructor(config), config.args, source.own)
    given.pop("lr", None)  # in the groups, through config.peak
    if config.averages and given.get("betas", (1.0,))[0] == 0:
        raise AtelierError(f"optimizer arguments: {config.name} needs a first beta above 0, such as betas=0.9,0.999.")
    return {**_chosen(config), **given}


def _chosen(config: OptimizerConfig) -> dict[str, optimizer_arguments.Value]:
    """What this pack and the widgets set, before the optimizer arguments."""
    warm = WARM.get(config.name, {}) if config.warms_up else {}
    return {**SOURCES[config.name].defaults, **warm, "weight_decay": config.decay}


def _groups(config: OptimizerConfig, parts: list[tuple[list[nn.Parameter], float]]) -> list[dict[str, Any]]:
    """Parameter groups; ``initial_lr`` (torch's name for it) is a group's rate before the schedule."""
    if config.own_rate:
        return [{"params": parameters, "lr": None, "initial_lr": None} for parameters, _ in parts]
    top = max(rate for _, rate in parts)
    if config.name == "Prodigy" and any(rate != top for _, rate in parts):
        raise AtelierError(
            "learning rate: Prodigy estimates one rate for everything it trains. Give every part the same (usually 1) or 0, "
            "or choose DAdaptAdam, which keeps the ratio of different ones."
        )
    if config.name == "Muon":
        rows = [(matrices, rate, whole) for parameters, rate in parts for whole, matrices in _by_kind(parameters)]
        return [
            {"params": found, "lr": rate, "initial_lr": rate, "use_muon": whole, "weight_decay": config.decay}
            for found, rate, whole in rows
        ]
    if config.name in ("DAdaptAdam", "DAdaptAdamW"):
        # One estimate for all as well, but this library has a factor for every group.
        return [{"params": parameters, "lr": top, "initial_lr": top, "layer_scale": rate / top} for parameters, rate in parts]
    return [{"params": parameters, "lr": rate, "initial_lr": rate} for parameters, rate in parts]


def _by_kind(parameters: Iterable[nn.Parameter]) -> Iterator[tuple[bool, list[nn.Parameter]]]:
    """(True, matrices, a convolution's kernels among them) and (False, what is a single row or column), as far as there are
    any: Muon evens out the singular values of the former, and a vector has only one."""
    kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for p in parameters:
        kinds[p.ndim > 1 and min(p.shape[0], p.numel() // p.shape[0]) > 1].append(p)
    yield from ((whole, found) for whole, found in kinds.items() if found)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's own rate times the schedule's ``factor``; what sets its own rate is left alone."""
    for group in optimizer.param_groups:
        if group["initial_lr"] is not None:
            group["lr"] = group["initial_lr"] * factor


def used_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """What the step to come makes of the schedule's ``rate``: that times the estimate d of Prodigy or D-adaptation (of the first
    part, where each has its own), or what Adafactor takes for the first parameter. Others use it as it is.

    No device sync, but for an Adafactor that scales by the parameters, which waits for each of them in its step anyway.
    """
    group = optimizer.param_groups[0]
    if group.get("shared_d") is not None:
        return rate * float(group["shared_d"])
    if "relative_step" not in group:
        return rate * float(group.get("d", 1.0))
    first = group["params"][0]
    state: dict[str, object] = {"step": optimizer.state.get(first, {}).get("step", 0) + 1}
    if group["scale_parameter"]:
        state["RMS"] = optimizer._rms(first.detach())  # type: ignore[attr-defined]
    return float(optimizer._get_lr({**group, "lr": rate}, state))  # type: ignore[attr-defined]


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The weights to save and sample with: a schedule-free optimizer's average, else what they are.

    Afterwards they are bit for bit what they were (the library's way there and back is not), so saving changes no training.
    """
    if "train_mode" not in optimizer.param_groups[0]:
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)
        for group in optimizer.param_groups:
            group["train_mode"] = True


def title(config: OptimizerConfig) -> str:
    """The optimizer with its settings as the metadata of LoRA files names it: ``torch.optim.AdamW(weight_decay=0.01)``."""
    source = SOURCES[config.name]
    values = {**_chosen(config), **{k: v for k, v in config.args.items() if k != "lr"}}
    return f"{source.module}.{source.attribute}({optimizer_arguments.write(values).replace(' ', ', ')})"


def notes(config: OptimizerConfig, rates: Sequence[float] = ()) -> list[str]:
    """What is done otherwise than the widgets say, in sentences; ``rates`` are those of the parts that are trained."""
    out = []
    for key, widget, used, value in (
        ("lr", "learning rate", config.peak, config.learning_rate),
        ("weight_decay", "weight decay", config.decay, config.weight_decay),
    ):
        if key in config.args and used != value:
            out.append(f"{widget}: {used} from the optimizer arguments is used, not {value}.")
    if config.own_rate:
        out.append("learning rate: Adafactor sets its own, because of relative_step=True; the widget's is not used.")
    if config.clips_itself and config.max_grad_norm > 0:
        out.append(f"gradient clipping: off, since {config.name} clips its updates itself.")
    warm = {k: v for k, v in WARM.get(config.name, {}).items() if k not in config.args} if config.warms_up else {}
    if warm:
        out.append(
            f"optimizer: because of the warmup {config.name} runs with {optimizer_arguments.write(warm)}; optimizer arguments of "
            "these names win. It finds its rate by itself and needs no warmup."
        )
    if config.name == "ProdigyPlusScheduleFree" and config.warms_up:
        out.append(f"warmup: {config.name} begins with a low rate and raises it by itself; a warmup only puts that off.")
    if config.warms_up and (start := config.args.get("d0")) is not None and config.adaptive and float(start) < 1e-5:  # type: ignore[arg-type]
        out.append(f"optimizer arguments: with a warmup d0={start} keeps {config.name} from learning for as long as that lasts.")
    splits = config.name == "ProdigyPlusScheduleFree" and config.args.get("split_groups", True)
    if config.adaptive and not splits and len({rate for rate in rates if rate > 0}) > 1:
        out.append(f"learning rate: {config.name} estimates one rate for all parts; yours count as ratios to the highest.")
    return out
