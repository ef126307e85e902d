"""What is learnt: this pack beside the stock ``TrainLoraNode``, judged on pictures that neither has seen.

    python3 studio.py bench against_stock [--json] [--save] [--steps 300] [--rates 5e-4 1e-3]

Both train rank 16 beside every layer of the demo model, on its 24 pictures, from the same latents and texts, four pictures a
step; the stock node trains norms and biases too, which it cannot be told to leave. It gets its best: bypass mode, which is the
faster one; batch 1 with four accumulated, because it shows every picture of a batch under all captions; and for both sides the
rate of ``--rates`` with which it ends lower.

The LoRA as it stands after every 50th step is then loaded by the stock loader, and the model is asked for 16 other pictures at 8
evenly spaced noise levels with fixed noise. The loss is that of the velocity; beside it stands that of the clean picture, which
is what the stock node minimises. ``style`` is the grid's likeness (``training/grid/score.py``) of six pictures, drawn of concepts
that the LoRA did not see, to its dataset. The clock runs from the call of each trainer and stands still while a LoRA is put
aside. ``--save`` also draws the curves of both to docs/against-stock.png.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import _common
import _plot
import torch
from lora_atelier.training import seeding
from lora_atelier.training.session import Session
from torch.optim.optimizer import register_optimizer_step_post_hook

RANK, BATCH, LEVELS, EVERY = 16, 4, 8, 50
DRAWN = 6
"""So many of them are drawn as well."""
STYLE = "fluent emoji"
"""The style word of the demo's captions."""
HELD_OUT = {
    "bear": "1F43B", "fox": "1F98A", "panda": "1F43C", "frog": "1F438", "lion": "1F981", "koala": "1F428", "chicken": "1F414",
    "octopus": "1F419", "snail": "1F40C", "spouting-whale": "1F433", "butterfly": "1F98B", "strawberry": "1F353",
    "pizza": "1F355", "red-apple": "1F34E", "carrot": "1F955", "cactus": "1F335",
}  # fmt: skip
"""Concepts that the demo model knows in other styles, and their code points."""
Tensors = dict[str, torch.Tensor]
Text = tuple[torch.Tensor, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Pictures:
    """Latents as the VAE gives them, (N, C, h, w), and the conditioning of each."""

    latents: torch.Tensor
    texts: list[Text]


@dataclass
class Course:
    """A run: the LoRA after some of its steps, and how long it took to get there."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loras: list[Tensors] = field(default_factory=list)
    velocity: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)
    style: list[float] = field(default_factory=list)


def draw(code_points: dict[str, str]) -> list[Any]:
    """The OpenMoji drawings, as PIL pictures."""
    from lora_atelier.demo.emoji import draw_svg
    from lora_atelier.demo.pictures import PICTURE_SIZE, svg_folder

    files = [svg_folder() / f"{code}.svg" for code in code_points.values()]
    return [draw_svg(file.read_text(encoding="utf-8"), PICTURE_SIZE) for file in files]


def encode(code_points: dict[str, str], clip: Any, vae: Any) -> Pictures:
    import numpy as np
    from lora_atelier.training import host

    pixels = torch.stack([torch.from_numpy(np.asarray(one, dtype=np.float32) / 255) for one in draw(code_points)])
    encoder = host.TextEncoder(clip)
    texts = []
    for name in code_points:
        found = encoder.encode(f"{STYLE}, {name.replace('-', ' ')}")
        texts.append((found["cond"], {key: value for key, value in found.items() if key != "cond"}))
    return Pictures(host.PictureCodec(vae).encode(pixels), texts)


@contextmanager
def followed(course: Course, lora: Callable[[], Tensors], every: int) -> Iterator[None]:
    """Notes the LoRA at the start and after every so many steps of the optimizer."""
    clock, count = [0.0, time.perf_counter()], [0]

    def put_aside() -> None:
        clock[0] += time.perf_counter() - clock[1]
        course.steps.append(count[0])
        course.seconds.append(clock[0])
        course.loras.append({name: tensor.detach().to("cpu", copy=True) for name, tensor in lora().items()})
        clock[1] = time.perf_counter()

    def ended(*_: Any) -> None:
        count[0] += 1
        if count[0] % every == 0:
            put_aside()

    handle = register_optimizer_step_post_hook(ended)
    try:
        yield
    finally:
        handle.remove()


def train_ours(
    patcher: Any, data: Pictures, steps: int, rate: float, every: int, base_weights: Any = "as loaded", seed: int = 0
) -> Course:
    """This pack's loop with its defaults, such as the cosine schedule, but beside every layer."""
    from lora_atelier.training import host
    from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, SubsetConfig, TrainingConfig
    from lora_atelier.training.dataset import precomputed
    from lora_atelier.training.dataset.cache import TensorCache
    from lora_atelier.training.dataset.encoded import EncodedDataset
    from lora_atelier.training.dataset.plan import Plan
    from lora_atelier.training.dataset.samples import Dataset, Subset
    from lora_atelier.training.families import family_named
    from lora_atelier.training.loop import train
    from lora_atelier.training.network import lora_file
    from lora_atelier.training.network.adapter import Adapter
    from lora_atelier.training.network.targets import select
    from lora_atelier.training.objective.noise import NoiseLevelSampler
    from lora_atelier.training.recorder import Callbacks
    from lora_atelier.training.runs.run import Run

    class Nobody:
        def identity(self) -> str:
            return ""

        def reading_of(self, _text: str) -> tuple[str, ...]:
            return ()

    network = NetworkConfig(rank=RANK, alpha=RANK, include="*")
    config = TrainingConfig(
        "bench", network=network, optimizer=OptimizerConfig(learning_rate=rate), length=LengthConfig(max_steps=steps),
        base_weights=base_weights, seed=seed,
    )  # fmt: skip
    course = Course()
    with tempfile.TemporaryDirectory() as place, torch.inference_mode(False):
        folder, cache = Path(place), TensorCache(Path(place) / "cache", 2**40)
        samples = precomputed.store([{"samples": data.latents}], [[list(text)] for text in data.texts], cache)
        dataset = Dataset((Subset(SubsetConfig("bench", batch_size=BATCH), samples, 1),))
        adapter: list[Adapter] = []
        model = host.Model(patcher)
        names = model.lora_names()
        with followed(course, lambda: lora_file.to_file(adapter[0], names, model.family, torch.float32), every):
            model = model.for_training(torch.float32, base_weights)
            layers = select(model.layers(), network)
            adapter.append(Adapter.fresh(layers, network, seed).to(model.device))
            levels = NoiseLevelSampler.suited(model.prediction, config.noise, model.sigmas, family_named(model.family))
            encoded: Any = EncodedDataset(dataset, seed, Nobody(), Nobody(), cache)  # type: ignore[arg-type]
            run = Run.begin("bench", folder / "runs", folder / "loras")
            train(Session(model, None, layers, adapter[0], levels, encoded, Plan(dataset, seed), config), run, Callbacks())
    return course


def train_stock(patcher: Any, data: Pictures, steps: int, rate: float, every: int) -> Course:
    """The stock node. What it trains is noted on its way from the function that makes it."""
    from comfy_extras import nodes_train

    course, made = Course(), list[Tensors]()
    usual = nodes_train._setup_lora_adapters_bypass

    def noted(*arguments: Any) -> Any:
        found = usual(*arguments)
        made.append(found[0])
        return found

    nodes_train._setup_lora_adapters_bypass = noted
    torch.manual_seed(0)
    try:
        with torch.inference_mode(), followed(course, lambda: made[0], every):
            nodes_train.TrainLoraNode.execute(
                model=[patcher], latents=[{"samples": data.latents}], positive=[[list(text) for text in data.texts]],
                batch_size=[1], steps=[steps], grad_accumulation_steps=[BATCH], learning_rate=[rate], rank=[RANK],
                optimizer=["AdamW"], loss_function=["MSE"], seed=[0], training_dtype=["fp32"], lora_dtype=["fp32"],
                quantized_backward=[False], algorithm=["LoRA"], gradient_checkpointing=[False], checkpoint_depth=[1],
                offloading=[False], existing_lora=["[None]"], bucket_mode=[False], bypass_mode=[True],
            )  # fmt: skip
    finally:
        nodes_train._setup_lora_adapters_bypass = usual
    return course


@dataclass(frozen=True)
class Style:
    """What drawn pictures are judged by."""

    vae: Any
    dataset: torch.Tensor
    """Directions of the training pictures."""
    negative: Text

    def of(self, drawings: list[Any]) -> float:
        """Mean likeness of PIL pictures to the dataset."""
        from lora_atelier.training.grid.features import ColoursAndEdges, embed_pictures

        return float((embed_pictures(ColoursAndEdges(), drawings) @ self.dataset.T).mean())

    def drawn(self, model: Any, texts: list[Text]) -> float:
        """The same of what ``model`` draws."""
        from lora_atelier.demo.pictures import PICTURE_SIZE
        from lora_atelier.training import host
        from lora_atelier.training.config.sampling import SamplerSettings
        from lora_atelier.training.dataset.images import to_picture

        codec, pictures = host.PictureCodec(self.vae), []
        for text in texts:
            cells = PICTURE_SIZE // codec.downscale
            latents = model.sample(
                [list(text)],
                [list(self.negative)],
                SamplerSettings("euler", "simple", 20, 3.0),
                latent_size=(cells, cells),
                seed=1,
            )
            pictures.append(to_picture(codec.decode(latents)[0]))
        return self.of(pictures)


def judge(patcher: Any, lora: Tensors, data: Pictures, style: Style | None) -> tuple[float, float, float]:
    """(loss of the velocity, loss of the clean picture, style), with the LoRA at strength 1; means over pictures and levels."""
    import comfy.model_management
    import comfy.sd
    from lora_atelier.training import host
    from lora_atelier.training.objective import noise

    with torch.inference_mode():  # as in a graph, where the stock nodes put LoRAs into weights
        if lora:
            patcher, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    model = host.Model(patcher)
    likeness = style.drawn(model, data.texts[:DRAWN]) if style else 0.0
    velocity, picture = [], []
    with model.hold(), torch.no_grad():
        x0 = model.latents_in(data.latents.to(model.device))
        for number in range(LEVELS):
            sigma = torch.full((len(x0),), (number + 0.5) / LEVELS, device=model.device)
            drawn = torch.randn(x0.shape, generator=seeding.step_generator(1, number)).to(model.device)
            x = noise.noisy("flow", x0, drawn, sigma)
            conditions = [model.condition({"cond": c, **more}, x[i : i + 1], {}) for i, (c, more) in enumerate(data.texts)]
            error = (model.predict(x, sigma, conditions) - noise.target("flow", x0, drawn, sigma)).square().mean().item()
            velocity.append(error)
            picture.append(error * float(sigma[0]) ** 2)
    return sum(velocity) / LEVELS, sum(picture) / LEVELS, likeness


def at_time(course: Course, seconds: float, losses: Sequence[float]) -> float:
    """The loss at a moment of the run, on the line between two that were measured; after its end, that of its end."""
    points = list(zip(course.seconds, losses, strict=True))
    for (t0, a), (t1, b) in pairwise(points):
        if seconds <= t1:
            return a + (b - a) * (seconds - t0) / max(1e-9, t1 - t0)
    return points[-1][1]


def summary(ours: Course, stock: Course) -> dict[str, Any]:
    """Held-out losses of both at equal steps, and at the moment when the faster one is done."""
    out: dict[str, Any] = {"without_lora": {"velocity": round(ours.velocity[0], 5), "picture": round(ours.picture[0], 5)}}
    soon = min(ours.seconds[-1], stock.seconds[-1])
    for kind in ("velocity", "picture"):
        mine, theirs = getattr(ours, kind), getattr(stock, kind)
        out[kind] = {
            "ours": round(mine[-1], 5), "stock": round(theirs[-1], 5),
            "ours_at_equal_time": round(at_time(ours, soon, mine), 5),
            "stock_at_equal_time": round(at_time(stock, soon, theirs), 5),
        }  # fmt: skip
        # How much of what there was to learn was learnt: by how much each lowered the loss of the model without a LoRA.
        gained, theirs_gained = mine[0] - mine[-1], theirs[0] - theirs[-1]
        out[kind]["gain_over_stock"] = round(gained / theirs_gained, 3) if theirs_gained > 0 else None
    out["style"] = {"without_lora": round(ours.style[0], 4), "ours": round(ours.style[-1], 4), "stock": round(stock.style[-1], 4)}
    out["seconds"] = {"ours": round(ours.seconds[-1], 1), "stock": round(stock.seconds[-1], 1), "equal_time": round(soon, 1)}
    return out


def figure(ours: Course, stock: Course, path: Path) -> None:
    named = (("LoRA Atelier", ours), ("stock TrainLoraNode", stock))
    steps = [_plot.Curve(name, list(zip(course.steps, course.velocity, strict=True))) for name, course in named]
    clock = [_plot.Curve(name, list(zip(course.seconds, course.velocity, strict=True))) for name, course in named]
    style = [_plot.Curve(name, list(zip(course.steps, course.style, strict=True))) for name, course in named]
    panels = [
        _plot.panel("Loss on 16 held-out pictures, by steps", "steps of 4 pictures", steps),
        _plot.panel("the same, by time", "seconds", clock),
        _plot.panel("Likeness of drawn pictures to the dataset", "steps of 4 pictures", style),
    ]
    _plot.side_by_side(panels).save(path, "PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=EVERY, help="steps between two LoRAs that are judged")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3])
    parser.add_argument("--checkpoint")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results and the curves to docs")
    options = parser.parse_args()
    _common.use_host()
    import comfy.sd
    from lora_atelier.demo.pictures import CODE_POINTS
    from lora_atelier.training import host
    from lora_atelier.training.grid.features import ColoursAndEdges, embed_pictures

    with torch.inference_mode():
        patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            options.checkpoint or _common.demo_checkpoint(), output_vae=True, output_clip=True
        )
    trained, held = encode(CODE_POINTS, clip, vae), encode(HELD_OUT, clip, vae)
    result: dict[str, Any] = {**_common.machine(), "steps": options.steps, "pictures_a_step": BATCH, "rank": RANK}
    nothing = host.TextEncoder(clip).encode("")
    directions = embed_pictures(ColoursAndEdges(), draw(CODE_POINTS))
    style = Style(vae, directions, (nothing["cond"], {key: value for key, value in nothing.items() if key != "cond"}))
    result["style_of_real_pictures"] = round(style.of(draw(dict(list(HELD_OUT.items())[:DRAWN]))), 4)
    start = judge(patcher, {}, held, style)
    best: dict[str, Course] = {}
    result["rates"] = {}
    for name, train in (("ours", train_ours), ("stock", train_stock)):
        for rate in options.rates:
            course = train(patcher, trained, options.steps, rate, options.every)
            found = [start, *(judge(patcher, lora, held, style) for lora in course.loras)]
            course.steps, course.seconds = [0, *course.steps], [0.0, *course.seconds]
            course.velocity, course.picture, course.style = (list(column) for column in zip(*found, strict=True))
            course.loras.clear()
            result["rates"][f"{name} {rate:g}"] = {k: [round(x, 5) for x in v] for k, v in vars(course).items() if v}
            print(f"{name}, rate {rate:g}: {course.velocity[0]:.4f} -> {course.velocity[-1]:.4f}, {course.seconds[-1]:.0f} s")
            if name not in best or course.velocity[-1] < best[name].velocity[-1]:
                best[name] = course
                result[f"{name}_rate"] = rate
    result |= summary(best["ours"], best["stock"])
    for key in ("ours_rate", "stock_rate", "without_lora", "velocity", "picture", "style", "seconds"):
        print(f"{key}: {result[key]}")
    if options.save:
        figure(best["ours"], best["stock"], _common.ROOT / "docs" / "against-stock.png")
    _common.finish("against_stock", result, as_json=options.json, keep=options.save)


if __name__ == "__main__":
    main()
