"""Train the demo's base model from scratch: a TAESD-format autoencoder, then an SD3-format MMDiT.

    python demo/train_base.py prepare     --icons FOLDER --work FOLDER --comfyui PATH
    python demo/train_base.py autoencoder --work FOLDER --comfyui PATH [--minutes 12]
    python demo/train_base.py encode      --work FOLDER --comfyui PATH
    python demo/train_base.py diffusion   --work FOLDER --comfyui PATH [--minutes 90]
    python demo/train_base.py blend       --work FOLDER --comfyui PATH --runs FILE [FILE]
    python demo/train_base.py export      --work FOLDER --comfyui PATH --out demo/weights.safetensors

``--icons`` is a folder in which ``npm install @iconify-json/{noto,twemoji,fluent-emoji-flat,emojione}`` was run. Every
stage continues from its last checkpoint in ``--work``. The shipped weights are of three runs of ``diffusion``: the first with
``--known-share 1 --changed-share 0``; from it (``blend --runs`` its file) one with the defaults; and from the mean of both one
with ``--rate 6e-4 --known-share 0.75 --changed-share 0.4``. The network classes are the host's own, so that what is trained here
is what ``CheckpointLoaderSimple`` builds later.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import emoji  # type: ignore[import-not-found]
import weights  # type: ignore[import-not-found]

PICTURE_SIZE = 128
LATENT_CHANNELS = 16
DEPTH = 5  # hidden size is 64 x depth
CONTEXT_TOKENS = 77
VARIANTS = 6
"""Views of each concept, the first as the set draws it."""
SPREAD = 3
"""Besides the concepts, the MMDiT sees every so many-th of the icons that all sets share."""
SKIPPED_ENCODER, SKIPPED_DECODER = {1, 4, 5}, {15, 18}
SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609  # the host's SD3 latent format


def use_host(path: str) -> None:
    sys.path.insert(0, path)
    sys.argv = [sys.argv[0], "--cpu"] if not torch.cuda.is_available() else [sys.argv[0]]
    import comfy.options

    comfy.options.enable_args_parsing()


def save_atomically(tensors: dict[str, torch.Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial)
    partial.replace(path)


def prepare(args: argparse.Namespace) -> None:
    """Draw every picture once: the concepts for the MMDiT in ``VARIANTS`` views, and all shared icons for the autoencoder.

    Some of the autoencoder's are drawn with black lines around every shape: what a LoRA is to add later, the decoder must be able
    to show. A model that could know each picture by heart would believe its caption and not look at what is there, and a LoRA
    could teach it nothing that holds for other pictures. So it sees every concept in several views under one caption, and other
    icons, in other colours, under their style alone (``noto emoji``).
    """
    rng = np.random.default_rng(3)
    sets = [emoji.EmojiSet(Path(args.icons), name) for name in emoji.BASE_SETS]
    slugs = emoji.concepts(sets)
    shared = sorted(set.intersection(*(set(s.bodies) for s in sets)))
    drawn = [(slug, s) for slug in slugs for s in sets if slug in s.bodies]
    pictures = [
        emoji.to_array(emoji.draw_svg(s.svg(slug, view=view), PICTURE_SIZE))
        for slug, s in drawn
        for view in ["", *(emoji.random_view(rng) for _ in range(VARIANTS - 1))]
    ]
    captions = [emoji.caption(s.name, slug) for slug, s in drawn]
    spread = [(slug, s) for slug in shared[::SPREAD] for s in sets]
    others = [
        emoji.turn_hue(emoji.to_array(emoji.draw_svg(s.svg(slug, view=emoji.random_view(rng)), PICTURE_SIZE)), rng)
        for slug, s in spread
    ]
    lined = [
        emoji.to_array(emoji.draw_svg(s.svg(slug, width), PICTURE_SIZE))
        for slug in shared
        for s, width in [*[(s, 0.0) for s in sets], (sets[len(slug) % len(sets)], 0.02), (sets[ord(slug[0]) % len(sets)], 0.03)]
    ]
    styles = [emoji.style(s.name) for _, s in spread]
    with (args.work / "pictures.npz").open("wb") as file:
        np.savez(
            file, concepts=np.stack(pictures), all=np.stack(lined), others=np.stack(others), captions=captions, styles=styles
        )  # fmt: skip
    print(f"{len(pictures)} pictures of {len(slugs)} concepts, {len(others)} others, {len(lined)} for the autoencoder")


def build_autoencoder() -> Any:
    import comfy.taesd.taesd

    model = comfy.taesd.taesd.TAESD(latent_channels=LATENT_CHANNELS)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    return model.float()


def gradient_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """L1 of horizontal and vertical differences: keeps edges sharp where plain L1 blurs them."""
    dx = (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean()
    dy = (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()
    return dx + dy


def active_path(model: Any) -> tuple[torch.nn.Sequential, torch.nn.Sequential]:
    """Encoder and decoder without the blocks that would cost most and add least at this picture size.

    A TAESD block whose last convolution is zero is ``relu(x)``; so a skipped block is trained as a plain ReLU and stored with
    zeros, and the file stays an ordinary TAESD.
    """
    for stack, skipped in ((model.taesd_encoder, SKIPPED_ENCODER), (model.taesd_decoder, SKIPPED_DECODER)):
        for index, block in enumerate(stack):
            if hasattr(block, "conv"):  # residual branches start small: the deep stack has no normalisation
                block.conv[4].weight.data *= 0.0 if index in skipped else 0.1
    encoder = [torch.nn.ReLU() if i in SKIPPED_ENCODER else m for i, m in enumerate(model.taesd_encoder)]
    decoder = [torch.nn.ReLU() if i in SKIPPED_DECODER else m for i, m in enumerate(model.taesd_decoder)]
    return torch.nn.Sequential(*encoder), torch.nn.Sequential(*decoder)


def crops(pictures: torch.Tensor, count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops, (count, 3, side, side) in 0..1; blank ones are drawn again, since most of an emoji page is white."""
    out: list[torch.Tensor] = []
    while len(out) < count:
        i = int(torch.randint(len(pictures), (), generator=generator))
        y, x = torch.randint(0, PICTURE_SIZE - side + 1, (2,), generator=generator).tolist()
        crop = pictures[i, :, y : y + side, x : x + side]
        if len(out) % 8 == 0 or int(crop.min()) < 250:
            out.append(crop)
    return (torch.stack(out).float() / 255).contiguous(memory_format=torch.channels_last)


def autoencoder(args: argparse.Namespace) -> None:
    pictures = torch.from_numpy(np.load(args.work / "pictures.npz")["all"])
    model = build_autoencoder().to(memory_format=torch.channels_last)
    encoder, decoder = active_path(model)
    checkpoint = args.work / "autoencoder.safetensors"
    if checkpoint.exists():
        model.load_state_dict(load_file(checkpoint))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=6e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    limit, started, step = args.minutes * 60, time.monotonic(), 0
    generator = torch.Generator().manual_seed(1)
    while (elapsed := time.monotonic() - started) < limit:
        progress = elapsed / limit
        rate = 6e-4 * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x = crops(pictures, 10, 64, generator)
        z = encoder(x)
        y = decoder(z + 0.05 * torch.randn(z.shape, generator=generator))
        loss = (x - y).abs().mean() + gradient_loss(x, y) + 1e-4 * z.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            mse = (x - y).square().mean().item()
            print(f"{step} {elapsed:.0f}s loss {loss.item():.4f} mse {mse:.5f} latent {z.std().item():.2f}", flush=True)
            if not math.isfinite(loss.item()):
                raise SystemExit("the autoencoder diverged: lower its rate")
        if step % 500 == 0:
            save_atomically(model.state_dict(), checkpoint)
    normalise_latents(model, pictures)
    save_atomically(model.state_dict(), checkpoint)


@torch.no_grad()
def normalise_latents(model: Any, pictures: torch.Tensor) -> None:
    """Choose ``vae_scale`` and ``vae_shift`` so that what the MMDiT sees (the host's SD3 latent format) has mean 0, std 1."""
    z = torch.cat([model.taesd_encoder(pictures[i : i + 32].float() / 255) for i in range(0, 640, 32)])
    scale = z.std() * SD3_SCALE
    model.vae_scale.data.copy_(scale)
    model.vae_shift.data.copy_(SD3_SHIFT - z.mean() / scale)


@torch.no_grad()
def encode(args: argparse.Namespace) -> None:
    """Latents and text conditioning of every picture, as the host would make them."""
    data = np.load(args.work / "pictures.npz")
    model = build_autoencoder()
    encoder, _ = active_path(model)
    model.load_state_dict(load_file(args.work / "autoencoder.safetensors"))

    def latents_of(name: str) -> torch.Tensor:
        pictures = torch.from_numpy(data[name])
        z: torch.Tensor = torch.cat([encoder(pictures[i : i + 16].float() / 255) for i in range(0, len(pictures), 16)])
        latents: torch.Tensor = (z / model.vae_scale + model.vae_shift - SD3_SHIFT) * SD3_SCALE
        return latents

    latents, spread = latents_of("concepts"), latents_of("others")
    restored = torch.cat([model.decode(latents[i : i + 16] / SD3_SCALE + SD3_SHIFT) for i in range(0, 64, 16)])
    error = (restored - (torch.from_numpy(data["concepts"][:64]).float() / 127.5 - 1)).square().mean().item() / 4
    clip = weights.load_text_encoder()
    styles = sorted({str(style) for style in data["styles"]})
    texts = ["", *[str(c) for c in data["captions"]], *styles]
    style = torch.tensor([1 + len(data["captions"]) + styles.index(str(s)) for s in data["styles"]])
    encoded = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in texts]
    context = torch.cat([c[:, :, :768] for c, _ in encoded]).half()
    pooled = torch.cat([p[:, :768] for _, p in encoded])
    tensors = {"latents": latents, "context": context, "pooled": pooled, "spread": spread, "style": style}
    save_atomically(tensors, args.work / "encoded.safetensors")
    print(f"latents mean {latents.mean():.3f} std {latents.std():.3f}, reconstruction mse {error:.5f} (0..1)")
    print(f"context std {context.float().std():.3f}, pooled std {pooled.std():.3f}")


def build_mmdit() -> Any:
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
    import comfy.ops

    hidden = 64 * DEPTH
    model = mmdit.MMDiT(
        input_size=None, patch_size=2, in_channels=LATENT_CHANNELS, depth=DEPTH, adm_in_channels=2048, qk_norm="rms",
        pos_embed_scaling_factor=None, num_patches=64, pos_embed_max_size=8,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": hidden}},
        x_block_self_attn_layers=[], dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            torch.nn.init.xavier_uniform_(p.view(p.shape[0], -1))
        else:
            torch.nn.init.ones_(p) if "ln_" in name else torch.nn.init.zeros_(p)
        if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
            torch.nn.init.zeros_(p)
    torch.nn.init.normal_(model.t_embedder.mlp[0].weight, std=0.02)
    torch.nn.init.normal_(model.t_embedder.mlp[2].weight, std=0.02)
    model.pos_embed.copy_(mmdit.get_2d_sincos_pos_embed_torch(hidden, 8, 8, device="cpu")[None])
    # Only CLIP-L's 768 of the 4096 (2048) columns ever see a number; the rest is zero in the file as in use.
    model.context_embedder.weight.data[:, 768:] = 0
    model.y_embedder.mlp[0].weight.data[:, 768:] = 0
    torch.nn.init.normal_(model.context_embedder.weight.data[:, :768], std=768**-0.5)
    torch.nn.init.normal_(model.y_embedder.mlp[0].weight.data[:, :768], std=768**-0.5)
    return model


def diffusion(args: argparse.Namespace) -> None:
    """Rectified flow: x_s = (1 - s) x0 + s e, target e - x0, logit-normal levels: shifted ones, as the host samples, would
    leave the last steps untrained, which draw the edges.

    Most steps see only the first tokens of the 77: CLIP is causal, so they are the very same numbers, and the padding that
    follows costs as much time as the picture. The last fifth trains on all 77, as the sampler will ask for.
    """
    data = load_file(args.work / "encoded.safetensors")
    views, others, pooled = data["latents"].unflatten(0, (-1, VARIANTS)), data["spread"], data["pooled"]
    concepts = len(views)
    caption_of = torch.cat([torch.arange(concepts) + 1, data["style"]])
    context = data["context"].float()
    model, step, spent = build_mmdit(), 0, 0.0
    state_file = args.work / "diffusion.pt"
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = copy.deepcopy(model).requires_grad_(False)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    generator = torch.Generator().manual_seed(2 + step)
    began, running, saved_at = time.monotonic() - spent, None, spent
    orders: tuple[list[int], list[int]] = ([], [])
    known = round(args.batch * args.known_share)
    while (progress := (time.monotonic() - began) / (args.minutes * 60)) < 1:
        rate = args.rate * min(1.0, (step + 1) / 150) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for order, first, last in zip(orders, (0, concepts), (concepts, len(caption_of)), strict=True):
            while len(order) < args.batch:
                order += (first + torch.randperm(last - first, generator=generator)).tolist()
        picks = torch.tensor([*orders[0][:known], *orders[1][: args.batch - known]])
        del orders[0][:known], orders[1][: args.batch - known]
        tokens = CONTEXT_TOKENS if progress > args.short_share else 12
        changed = torch.rand(known, generator=generator) < args.changed_share
        view = torch.where(changed, torch.randint(1, VARIANTS, (known,), generator=generator), 0)
        x0 = torch.cat([views[picks[:known], view], others[picks[known:] - concepts]])
        text = torch.where(torch.rand(args.batch, generator=generator) < 0.1, 0, caption_of[picks])
        c, y = context[text, :tokens], pooled[text]
        s = torch.sigmoid(torch.randn(args.batch, generator=generator))
        mix = s.view(-1, 1, 1, 1)
        noise = torch.randn(x0.shape, generator=generator)
        out = model((1 - mix) * x0 + mix * noise, s * 1000, context=F.pad(c, (0, 4096 - 768)), y=F.pad(y, (0, 2048 - 768)))
        loss = F.mse_loss(out, noise - x0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (step + 1) / (step + 20))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        step += 1
        if step % 25 == 0:
            print(f"step {step} loss {running:.4f} rate {rate:.2e} {progress:.1%}", flush=True)
        if time.monotonic() - began > saved_at + 240:
            saved_at = time.monotonic() - began
            save_diffusion(model, average, optimizer, step, saved_at, state_file)
    save_diffusion(model, average, optimizer, step, time.monotonic() - began, state_file)


def blend(args: argparse.Namespace) -> None:
    """Begin a new run from the mean of what earlier ones averaged (``--runs``); from one run, this goes on with a new clock.

    Between a run that saw every picture as it is (crisp, but by heart) and its continuation on other views (blurred, but ready to
    learn another style) lies a model that is both (Wortsman et al. 2022, "Model soups").
    """
    averages = [torch.load(path, weights_only=True)["average"] for path in args.runs]
    mean = {name: torch.stack([average[name] for average in averages]).mean(0) for name in averages[0]}
    torch.save({"model": mean, "average": mean, "step": 0, "spent": 0.0}, args.work / "diffusion.pt")


def save_diffusion(
    model: torch.nn.Module,
    average: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    spent: float,
    path: Path,
) -> None:
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "step": step, "spent": spent}, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def export(args: argparse.Namespace) -> None:
    """Pack the averaged MMDiT and the autoencoder for the repository (see ``weights.py`` for the format)."""
    average = torch.load(args.work / "diffusion.pt", weights_only=True)["average"]
    tensors = {f"model.diffusion_model.{k}": v for k, v in average.items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in load_file(args.work / "autoencoder.safetensors").items()}
    size = weights.pack(tensors, Path(args.out))
    print(f"{args.out}: {size / 1e6:.1f} MB")


STAGES = {
    "prepare": prepare, "autoencoder": autoencoder, "encode": encode, "diffusion": diffusion, "blend": blend, "export": export,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--icons")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--comfyui", required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--short-share", type=float, default=0.8)
    parser.add_argument("--known-share", type=float, default=0.7, help="share of a batch with a concept in its caption")
    parser.add_argument("--changed-share", type=float, default=0.6, help="how often a concept is shown in another view")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="copies of diffusion.pt for the stage blend")
    parser.add_argument("--out", default="demo/weights.safetensors")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    use_host(args.comfyui)
    torch.manual_seed(0)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
