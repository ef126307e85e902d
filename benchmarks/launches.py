"""Operations that reach the device in a training step, at real sizes, without a device: a stand-in for launches.

    python3 studio.py bench launches [--json] [--save] [--models sd15 sdxl flux qwen-image z-image] [--rank 16] [--dtype bf16]

Models without numbers (torch's meta device) are led through a step: whatever would be asked of a GPU is counted, but for views,
which cost nothing there. Attention counts as the one kernel that it is on a GPU, each way. ``forward_ratio`` and
``backward_ratio`` are ours over the forward pass of the bare model; diffusers + PEFT are counted over that of their own, for the
models of which diffusers' network is told here.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import _common
import _models
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NONE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
"""Operations for which nothing is asked of a device."""
PIXELS = {"sd15": 512}
"""The side of the picture; 1024 elsewhere. The number of operations does not depend on it."""


class Launches(TorchDispatchMode):
    """Counts operations by name; what only looks at a tensor otherwise is none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        looks = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        name = func.overloadpacket.__name__
        if not looks and name not in NONE:
            self.found[name] += 1
        return out

    @property
    def total(self) -> int:
        return sum(self.found.values())


counting: list[Launches] = []
"""What counts now, innermost last."""


class Kernels(TorchFunctionMode):
    """Attention is one kernel, there and back."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (dict(kwargs) if kwargs else {})
        return _Attention.apply(named["query"], named["key"], named["value"])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        counting[-1].found["attention"] += 1
        return query.new_empty((*query.shape[:-1], value.shape[-1]))

    @staticmethod
    def backward(ctx: Any, _gradient: Any) -> Any:
        counting[-1].found["attention backward"] += 1
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


@contextmanager
def counted() -> Iterator[Launches]:
    launches = Launches()
    counting.append(launches)
    try:
        with launches, Kernels():
            yield launches
    finally:
        counting.pop()


Z_IMAGE: dict[str, Any] = {
    "patch_size": 2, "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30,
    "ffn_dim_multiplier": 8 / 3, "qk_norm": True, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
MODELS = ("sd15", "sdxl", "flux", "qwen-image", "z-image")


def network_of(name: str) -> Any:
    """The host's network of a transformer's real size, without numbers."""
    import comfy.ops

    plain: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta", "operations": comfy.ops.disable_weight_init}
    if name == "flux":
        from comfy.ldm.flux.model import Flux

        return Flux(**_models.FLUX, **plain)
    if name == "qwen-image":
        from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

        return QwenImageTransformer2DModel(**plain)  # its defaults are the published size
    from comfy.ldm.lumina.model import NextDiT

    return NextDiT(**Z_IMAGE, **plain)


def outline_of(name: str, dtype: torch.dtype) -> Any:
    """The host's model, as ``host.Outline``."""
    from comfy import model_detection
    from lora_atelier.training.host import Outline
    from lora_atelier.training.tensors.safetensors_header import Header

    made = _models.empty_unet(name) if name in ("sd15", "sdxl") else network_of(name)
    shapes = Header({key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in made.state_dict().items()}, {}).tensors()
    if name in ("sd15", "sdxl"):
        config = model_detection.model_config_from_diffusers_unet(shapes)
    else:
        config = model_detection.model_config_from_unet(shapes, "")
    config.set_inference_dtype(dtype, None)
    return Outline(config.get_model({}, "", device="meta"), dtype)


def ours(name: str, dtype: torch.dtype, rank: int) -> dict[str, int]:
    """A step of this pack: the bare network's forward pass, ours, the way back, clipping and AdamW."""
    from lora_atelier.training.config import NetworkConfig, OptimizerConfig
    from lora_atelier.training.estimate.activations import Shapes
    from lora_atelier.training.network.adapter import Adapter
    from lora_atelier.training.network.scope import adaptable_layers
    from lora_atelier.training.network.targets import select
    from lora_atelier.training.optim.flat_optimizer import FlatOptimizer
    from lora_atelier.training.step import answer, noised

    model, network = outline_of(name, dtype), NetworkConfig(rank=rank, alpha=rank / 2)
    layers = select(adaptable_layers(model, None)[0], network)
    pixels = PIXELS.get(name, 1024)

    def forward() -> Tensor:
        x0 = model.latents_in(model.latents((pixels, pixels)).to(dtype))
        return answer(model, noised(model, x0, torch.ones(1), torch.zeros_like(x0), [model.text()], [{}])).square().mean()

    with torch.device("meta"), Shapes():
        adapter = Adapter.fresh(layers, network, 0)
        flat = adapter.flatten(dtype)
        with torch.no_grad(), counted() as bare:
            forward()
        with adapter.attached(layers), adapter.listening(), counted():
            forward()
        with adapter.attached(layers, across_blocks=True):
            with counted() as there:
                flat.begin()
                loss = forward()
            with counted() as back:
                loss.backward()
                flat.collect()
        with counted() as clipping:
            torch.nn.utils.clip_grad_norm_(flat.parameters, 1.0)
    small = Adapter.fresh({"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 8)}, network, 0).flatten(dtype)
    optimizer = FlatOptimizer(OptimizerConfig(), small)
    optimizer.of_torch.step()
    with counted() as stepping:
        optimizer.of_torch.step()
    return {
        "layers": len(layers), "bare_forward": bare.total, "forward": there.total, "backward": back.total,
        "clipping": clipping.total, "optimizer": stepping.total,
    }  # fmt: skip


def peft(name: str, rank: int) -> dict[str, int] | None:
    """diffusers' network with PEFT on the same kinds of layers, all in bf16; None where diffusers does not know it.

    What autocast converts, which is there in real training, is not counted.
    """
    from peft import LoraConfig

    made = diffusers_network(name)
    if made is None:
        return None
    network, inputs = made
    network.requires_grad_(False)
    feed_forward = [
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
    ]
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", *feed_forward]
    targets += ["proj_mlp", "proj_out"] if name == "flux" else []
    with torch.device("meta"):
        with torch.no_grad(), counted() as bare:
            network(**inputs, return_dict=False)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank // 2, init_lora_weights=False, target_modules=targets))
        network.to(torch.bfloat16)
        trained = [p for p in network.parameters() if p.requires_grad]
        with counted() as there:
            out = network(**inputs, return_dict=False)[0]
            loss = (out[0] if isinstance(out, list) else out).float().square().mean()
        with counted() as back:
            loss.backward()
    return {"layers": len(trained) // 2, "bare_forward": bare.total, "forward": there.total, "backward": back.total}


def diffusers_network(name: str) -> tuple[Any, dict[str, Any]] | None:
    """(its network in bf16, what it is asked with), without numbers."""
    import diffusers

    def some(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    if name in ("sd15", "sdxl"):
        kind, cells = _models.KINDS[name], PIXELS.get(name, 1024) // 8
        inputs: dict[str, Any] = {
            "sample": some(1, 4, cells, cells), "timestep": some(1), "encoder_hidden_states": some(1, kind.tokens, kind.width)
        }  # fmt: skip
        if kind.pooled:
            inputs["added_cond_kwargs"] = {"text_embeds": some(1, kind.pooled), "time_ids": some(1, 6)}
        return _models.empty_unet(name).to(torch.bfloat16), inputs
    if name == "flux":
        with torch.device("meta"):
            flux = diffusers.FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)
        return flux, {
            "hidden_states": some(1, 4096, 64), "encoder_hidden_states": some(1, 512, 4096), "pooled_projections": some(1, 768),
            "timestep": some(1), "guidance": some(1), "img_ids": some(4096, 3), "txt_ids": some(512, 3),
        }  # fmt: skip
    return None


def measured(name: str, rank: int, dtype: torch.dtype, with_peft: bool) -> dict[str, Any]:
    """Both sides of one model, with their ratios."""
    found: dict[str, Any] = {"ours": ours(name, dtype, rank)}
    if with_peft and (theirs := peft(name, rank)) is not None:
        found["peft"] = theirs
    for side in found.values():
        side["forward_ratio"] = round(side["forward"] / side["bare_forward"], 3)
        side["backward_ratio"] = round(side["backward"] / side["bare_forward"], 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--no-peft", action="store_true", help="count our side alone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    options = parser.parse_args()
    _common.use_host(torch_attention=True)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
    result: dict[str, Any] = {**_common.machine(), "dtype": options.dtype, "rank": options.rank, "models": {}}
    print(
        f"{'model':<12}{'side':<8}{'layers':>8}{'bare':>8}{'there':>8}{'back':>8}{'there/bare':>12}{'back/bare':>12}",
        file=sys.stderr,
    )
    for name in options.models:
        found = result["models"][name] = measured(name, options.rank, dtype, not options.no_peft)
        for side, row in found.items():
            counts = "".join(f"{row[key]:>8}" for key in ("layers", "bare_forward", "forward", "backward"))
            ratios = "".join(f"{row[key]:>12}" for key in ("forward_ratio", "backward_ratio"))
            print(f"{name:<12}{side:<8}{counts}{ratios}", file=sys.stderr)
    first = result["models"].get("sd15") or next(iter(result["models"].values()))
    result |= {key: first["ours"][key] for key in ("forward_ratio", "backward_ratio")}
    _common.finish("launches", result, as_json=options.json, keep=options.save)


if __name__ == "__main__":
    main()
