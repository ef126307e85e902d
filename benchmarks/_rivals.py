"""The sides of ``step_time`` that this pack is compared with."""

from __future__ import annotations

import _models
import torch
from _case import DTYPES, Case, Forward, Found, Train, latents_of, load_into_host, seconds_of, text_of


def stock(case: Case) -> tuple[Train, None]:
    """ComfyUI's own node, AdamW, rank as here; its bypass mode where the side asks for it."""
    from comfy_extras import nodes_train

    patcher = load_into_host(case)

    def run(now: Case, found: Found) -> None:
        cond, extras = text_of(now)
        found.layers = sum(getattr(getattr(m, "weight", None), "ndim", 0) > 1 for m in patcher.model.modules())
        with torch.inference_mode():
            nodes_train.TrainLoraNode.execute(
                model=[patcher], latents=[{"samples": latents_of(now, now.batch)}], positive=[[[cond, extras]]],
                batch_size=[now.batch], steps=[now.steps + 1], grad_accumulation_steps=[1], learning_rate=[1e-4],
                rank=[case.rank], optimizer=["AdamW"], loss_function=["MSE"], seed=[0], training_dtype=[case.dtype],
                lora_dtype=[case.dtype], quantized_backward=[False], algorithm=["LoRA"], gradient_checkpointing=[False],
                checkpoint_depth=[1], offloading=[False], existing_lora=["[None]"], bucket_mode=[False],
                bypass_mode=[case.side == "stock_bypass"],
            )  # fmt: skip

    return run, None


def peft(case: Case) -> tuple[Train, Forward]:
    """diffusers' UNet with PEFT, as diffusers' own text-to-image LoRA script trains it."""
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig
    from safetensors.torch import load_file

    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), DTYPES[case.dtype]
    unet = _models.empty_unet(case.model)
    weights = load_file(_models.file_of(case.model, case.dtype))
    unet.load_state_dict({name: w.to(device, copy=True) for name, w in weights.items()}, assign=True)
    del weights
    unet.requires_grad_(False)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    named = {
        "attention": attention,
        "attention + feed-forward": [*attention, "ff.net.0.proj", "ff.net.2"],
        "every layer": [name for name, module in unet.named_modules() if isinstance(module, kinds)],
    }[case.targets]
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    mixed = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def tell(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cond, extras = text_of(case)
        more = {}
        if extras:
            sizes = torch.tensor([[case.pixels, case.pixels, 0, 0, case.pixels, case.pixels]], device=device)
            more = {"text_embeds": extras["pooled_output"].to(device, dtype).expand(len(x), -1)}
            more |= {"time_ids": sizes.expand(len(x), -1)}
        states = cond.to(device, dtype).expand(len(x), -1, -1)
        answer: torch.Tensor = unet(x.to(dtype), t, states, added_cond_kwargs=more or None, return_dict=False)[0]
        return answer

    def adapt(found: Found) -> list[torch.nn.Parameter]:
        config = LoraConfig(r=case.rank, lora_alpha=case.rank, init_lora_weights="gaussian", target_modules=named)
        unet.add_adapter(config)
        cast_training_params(unet, torch.float32)
        parameters = [p for p in unet.parameters() if p.requires_grad]
        found.layers = len(parameters) // 2
        return parameters

    def run(now: Case, found: Found) -> None:
        parameters = adapt(found)
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
        unet.train()
        x0 = latents_of(now, now.batch).to(device)
        for _ in range(now.steps + 1):
            noise = torch.randn_like(x0)
            t = torch.randint(0, 1000, (len(x0),), device=device)
            with mixed:
                loss = F.mse_loss(tell(scheduler.add_noise(x0, noise, t), t).float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        unet.delete_adapters("default")

    def forward(count: int) -> list[float]:
        x, t = latents_of(case, case.batch).to(device), torch.full((case.batch,), 500, device=device)
        with torch.no_grad(), mixed:
            return seconds_of(lambda: tell(x, t), count, case.clock)

    return run, forward
