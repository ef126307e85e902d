"""The cells: what the stock nodes draw, in batches, from models that stay as they were."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_atelier.training import files, host
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.config.sampling import SamplerSettings
from lora_atelier.training.grid import cell_renderer, cells, lora, mean, plan, render, side_by_side
from lora_atelier.training.grid.features import ColoursAndEdges
from lora_atelier.training.grid.judge import Judge
from lora_atelier.training.grid.sheet import Failed
from lora_atelier.training.network import lora_file
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.scope import TEXT, adaptable_layers, text_layers
from lora_atelier.training.network.targets import choose
from lora_atelier.training.performance.recording import EagerRecorder
from lora_atelier.training.runs.record import SavedLoRA
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

STRENGTHS = (0.4, 1.0, -0.7)


def write_lora(t, path: Path, *, seed: int = 3, text: bool = False, change=lambda tensors: tensors, **settings) -> Path:
    """A LoRA with weights that change the picture, saved as a run saves it."""
    layers, names = adaptable_layers(t.model, t.text)
    chosen = choose({n: layer for n, layer in layers.items() if not n.startswith(TEXT)}, "attention + feed-forward")
    chosen |= text_layers(layers, "all") if text else {}
    adapter = Adapter.fresh(chosen, NetworkConfig(**{"rank": 2, "alpha": 2.0, **settings}), seed)
    stream = torch.Generator().manual_seed(seed)
    for branch in adapter.branches.values():
        for parameter in branch.factors():
            if not parameter.any():
                parameter.data = (torch.randn(parameter.shape, generator=stream) * 0.1).to(parameter.device)
    save_file(change(lora_file.to_file(adapter, names, t.model.family, torch.float32, layers)), path)
    return path


def alike(a, b) -> bool:
    """Equal but for rounding, which a network of random weights makes larger: 4 of 255 levels somewhere, next to none overall."""
    difference = np.abs(a - b)
    return difference.max() <= 4 and difference.mean() < 0.3


def opened(t, path: Path) -> lora.Lora:
    return lora.Lora([path], t.model, t.text, *adaptable_layers(t.model, t.text))


def sampling(**changes) -> render.Sampling:
    return dataclasses.replace(render.Sampling("", "euler", "normal", 2, 2.0, 64, 64, 3), **changes)


def columns(*paths: Path) -> tuple[plan.Column, ...]:
    return tuple(plan.Column(SavedLoRA(p, i, i * 10), "ink", f"epoch {i}") for i, p in enumerate(paths, 1))


def grid_of(t, folder: Path, *paths: Path, strengths=STRENGTHS, prompts=("a fox",), seeds=(3,), text=None, how=None, **more):
    axes = plan.Axes(prompts, columns(*paths), strengths, seeds, text)
    settings = sampling(**(how or {}))
    return render.Grid(t.model, t.text, t.codec, axes, settings, folder / "grids", {"workflow": "{}"}, **more)


def drawn(grid: render.Grid) -> render.Grid:
    with torch.inference_mode():
        grid.render(lambda done, page: None)
    return grid


def pixels(grid: render.Grid, page: int, place: tuple[int, int]) -> np.ndarray:
    cell = grid.book.cells[page][place]
    assert isinstance(cell, Path), cell
    return np.asarray(Image.open(cell).convert("RGB"), dtype=int)


def stock(t, path: Path, strength: float, prompt: str, settings: render.Sampling, text: float | None = None) -> np.ndarray:
    """LoraLoader, CLIPTextEncode, KSampler, VAEDecode and SaveImage."""
    with torch.inference_mode():
        model, clip = t.model.with_lora(t.text.clip, files.read_tensors(path, "look"), strength, text)
        brush = cell_renderer.CellRenderer(host.Model(model), host.TextEncoder(clip), t.codec, settings)
        return np.asarray(brush.plain(plan.Page(prompt, settings.seed)), dtype=int)


def hooks(t) -> int:
    found = [*t.model.base.modules(), *t.text.clip.cond_stage_model.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in found)


def beside(t, *pictures: tuple[lora.Lora, float]) -> tuple[side_by_side.SideBySide, list[side_by_side.Beside]]:
    owner = side_by_side.SideBySide(adaptable_layers(t.model, t.text)[0], t.model.device)
    return owner, [side_by_side.Beside(file.of_model, strength) for file, strength in pictures]


def sampled(t, pictures, sampler: str, cfg: float) -> torch.Tensor:
    """Latents of all ``pictures`` (file, strength) in one batch, or of a single one as the sampler gives it alone."""
    owner, shown = beside(t, *pictures)
    settings, more = SamplerSettings(sampler, "normal", 3, cfg), {"latent_size": (8, 8), "seed": 5}
    texts = [[[text.pop("cond"), text]] for text in (t.conditioning(1), t.conditioning(2))]
    with torch.inference_mode(), owner.attached(shown) as rows, t.model.each_call(rows.spread):
        if len(pictures) == 1:
            return t.model.sample(*texts, settings, **more)
        return t.model.sample_together(*texts, settings, len(pictures), rows.choose, **more)


SAMPLERS = [
    ("sd15", "euler_ancestral"), ("sd15", "dpmpp_2m_sde"), ("sd3", "euler"), ("sd3", "euler_ancestral"), ("sd3", "dpmpp_sde"),
    ("sd3", "uni_pc"), ("sd3", "euler_ancestral_cfg_pp"),
]  # fmt: skip


def two_files(t, folder: Path) -> list[tuple[lora.Lora, float]]:
    """Pictures of a file at three strengths, and of one of another rank that leaves half of the layers alone at two."""
    some = lambda tensors: {k: v for i, (k, v) in enumerate(sorted(tensors.items())) if i // 3 % 2}  # noqa: E731
    one = opened(t, write_lora(t, folder / "one.safetensors"))
    other = opened(t, write_lora(t, folder / "other.safetensors", seed=4, change=some, rank=5))
    assert one.beside and other.beside and not one.of_text and 0 < len(other.of_model) < len(one.of_model)
    return [(one, 0.4), (other, 1.0), (one, 1.0), (one, -0.7), (other, 0.5)]


@pytest.mark.parametrize(("name", "sampler"), SAMPLERS)
def test_a_batch_of_files_and_strengths_is_the_single_pictures(tiny, tmp_path, name, sampler):
    """Also where the sampler draws noise on its way or changes the guidance."""
    t = tiny(name)
    pictures = two_files(t, tmp_path)
    together = sampled(t, pictures, sampler, 3.0)
    for row, picture in enumerate(pictures):
        alone = sampled(t, [picture], sampler, 3.0)
        assert (together[row] - alone[0]).abs().max() < 1e-3 * alone.abs().max(), picture
    least = 0.01 * together.abs().max()
    assert all((a - b).abs().max() > least for i, a in enumerate(together) for b in together[:i])


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("room", [True, False])
def test_each_picture_keeps_its_own_however_the_host_batches(tiny, tmp_path, monkeypatch, cfg, room):
    """Without guidance there is one pass a picture; with little memory both halves go one after the other."""
    t = tiny("sd3")
    pictures = two_files(t, tmp_path)
    expected = [sampled(t, [picture], "euler", cfg)[0] for picture in pictures]
    seen = []
    real = side_by_side.Rows.spread
    monkeypatch.setattr(side_by_side.Rows, "spread", lambda self, batch: seen.append(batch) or real(self, batch))
    if not room:
        monkeypatch.setattr(t.model.base, "memory_required", lambda *_a, **_k: 1e30)
    together = sampled(t, pictures, "euler", cfg)
    assert set(seen) == {10 if room and cfg > 1 else 5}
    for one, other in zip(together, expected, strict=True):
        assert (one - other).abs().max() < 1e-3 * other.abs().max()


@pytest.mark.parametrize(("name", "text", "sampler"), [("sd15", True, "euler"), ("sd3", False, "euler_ancestral")])
def test_cells_are_those_of_the_stock_nodes(tiny, tmp_path, name, text, sampler):
    """With a part in the text encoder every row has its own reading of the prompt."""
    t = tiny(name)
    path = write_lora(t, tmp_path / "ink.safetensors", text=text)
    before, hooked = t.model.identity(), hooks(t)
    grid = drawn(grid_of(t, tmp_path, path, how={"sampler": sampler}))
    assert t.model.identity() == before and hooks(t) == hooked
    for row, strength in enumerate(STRENGTHS):
        expected = stock(t, path, strength, "a fox", sampling(sampler=sampler))
        assert alike(pixels(grid, 0, (1, row)), expected), strength
        assert np.abs(pixels(grid, 0, (0, 0)) - expected).max() > 4
    assert grid.together == len(STRENGTHS)


def test_at_strength_0_a_cell_is_the_control_and_is_not_drawn_again(tiny, tmp_path, monkeypatch):
    t, asked = tiny("sd3"), []
    path = write_lora(t, tmp_path / "ink.safetensors", text=True)
    real = cell_renderer.CellRenderer.beside

    def beside(brush, orders, page):
        asked.append([order.strength for order in orders])
        return real(brush, orders, page)

    monkeypatch.setattr(cell_renderer.CellRenderer, "beside", beside)
    grid = drawn(grid_of(t, tmp_path, path, strengths=(0.0, 1.0), prompts=("a fox", "an owl")))
    assert asked == [[1.0], [1.0]]
    assert np.array_equal(pixels(grid, 1, (1, 0)), stock(t, path, 0.0, "an owl", sampling()))
    assert np.array_equal(pixels(grid, 1, (1, 0)), pixels(grid, 1, (0, 0)))
    with Image.open(grid.book.cells[1][1, 0]) as cell:
        known = json.loads(cell.text[cells.KEY])
    assert (known["strength"], known["prompt_text"], known["lora_content"]) == (0.0, "an owl", cells.Contents().of(path))
    # With a strength of its own the text encoder changes the prompt all the same.
    drawn(grid_of(t, tmp_path, path, strengths=(0.0,), text=1.0))
    assert asked[2:] == [[0.0]]


def test_the_text_encoders_strength_can_be_its_own(tiny, tmp_path):
    t = tiny("sd15")
    path = write_lora(t, tmp_path / "ink.safetensors", text=True)
    grid = drawn(grid_of(t, tmp_path, path, strengths=(0.5, 1.0), text=0.0))
    for row, strength in enumerate((0.5, 1.0)):
        expected = stock(t, path, strength, "a fox", sampling(), 0.0)
        assert alike(pixels(grid, 0, (1, row)), expected)
    assert np.abs(stock(t, path, 1.0, "a fox", sampling()) - stock(t, path, 1.0, "a fox", sampling(), 0.0)).max() > 4


def twice(tensors):
    return {k: torch.cat([v, v], -1) if v.ndim else v for k, v in tensors.items()}


def more_keys(tensors):
    return tensors | {"lora_unet_somewhere.diff_b": torch.zeros(4)}


@pytest.mark.parametrize(
    "how",
    [{"algorithm": "LoKr"}, {"weight_decompose": True}, {"change": more_keys}],
    ids=["another algorithm", "DoRA", "a key that is not known"],
)
def test_what_is_not_wholly_understood_goes_the_hosts_way(tiny, tmp_path, how):
    pytest.importorskip("lycoris")
    t = tiny("sd3")
    path = write_lora(t, tmp_path / "ink.safetensors", **how)
    assert not opened(t, path).beside
    before = t.model.identity()
    grid = drawn(grid_of(t, tmp_path, path, strengths=(0.5, 1.0)))
    assert t.model.identity() == before
    for row, strength in enumerate((0.5, 1.0)):
        assert np.array_equal(pixels(grid, 0, (1, row)), stock(t, path, strength, "a fox", sampling()))
    clean = drawn(grid_of(t, tmp_path / "clean", strengths=(1.0,)))
    assert np.array_equal(pixels(grid, 0, (0, 0)), pixels(clean, 0, (0, 0))), "the model is what it was"


def test_layers_that_are_passed_by_make_the_host_merge(tiny, tmp_path, monkeypatch):
    t = tiny("sd3")
    path = write_lora(t, tmp_path / "ink.safetensors")

    def refuse(self, *_args):
        raise side_by_side.UnusedLayers("one layer was passed by")

    monkeypatch.setattr(cell_renderer.CellRenderer, "beside", refuse)
    grid = drawn(grid_of(t, tmp_path, path, strengths=(0.5, 1.0)))
    assert np.array_equal(pixels(grid, 0, (1, 1)), stock(t, path, 1.0, "a fox", sampling()))


def test_a_batch_that_fails_is_drawn_one_by_one(tiny, tmp_path, monkeypatch):
    t = tiny("sd3")
    path = write_lora(t, tmp_path / "ink.safetensors")
    monkeypatch.setattr(host.Model, "sample_together", lambda *_a, **_k: (_ for _ in ()).throw(RuntimeError("no room")))
    grid = drawn(grid_of(t, tmp_path, path, prompts=("a fox", "an owl")))
    assert grid.together == 1
    assert all(isinstance(cell, Path) for page in grid.book.cells for cell in page.values())


def test_a_cell_that_fails_is_blank_with_its_reason_and_costs_no_other(tiny, tmp_path):
    t = tiny("sd3")
    good = write_lora(t, tmp_path / "good.safetensors")
    broken = write_lora(t, tmp_path / "broken.safetensors", change=lambda x: {k: v * float("nan") for k, v in x.items()})
    alien = tmp_path / "alien.safetensors"
    save_file({"lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2)}, alien)
    large = write_lora(t, tmp_path / "large.safetensors", change=twice)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(good.read_bytes()[:100])
    before = t.model.identity()
    grid = drawn(grid_of(t, tmp_path, broken, alien, torn, tmp_path / "gone.safetensors", large, good, strengths=(0.5, 1.0)))
    reasons = [grid.book.cells[0][column, 1] for column in (1, 2, 3, 4, 5)]
    assert all(isinstance(reason, Failed) for reason in reasons)
    for reason, words in zip(reasons, ("NaN or infinite", "alien", "torn", "gone", "another model"), strict=True):
        assert words in reason.reason
    assert pixels(grid, 0, (6, 1)).shape == (64, 64, 3) and t.model.identity() == before
    assert grid.save_pages()[0].is_file()


@pytest.mark.parametrize("part", ["lora_down.weight", "alpha"])
@pytest.mark.parametrize("text", [False, True])
def test_a_file_that_holds_no_numbers_is_named_and_nothing_else_blamed(tiny, tmp_path, part, text):
    def spoil(tensors):
        key = next(key for key in tensors if key.endswith(part) and key.startswith("lora_te") == text)
        return tensors | {key: torch.full_like(tensors[key], float("nan"))}

    t = tiny("sd15")
    path = write_lora(t, tmp_path / "spoilt.safetensors", change=spoil, text=text)
    cell = drawn(grid_of(t, tmp_path, path, strengths=(1.0,))).book.cells[0][1, 0]
    assert isinstance(cell, Failed) and cell.reason.startswith("spoilt.safetensors holds NaN or infinite numbers (lora_")


def test_a_cell_that_is_no_picture_says_so_in_a_sentence(tiny, tmp_path, monkeypatch):
    t = tiny("sd15")
    path = write_lora(t, tmp_path / "x.safetensors")
    whole = host.PictureCodec.decode
    monkeypatch.setattr(host.PictureCodec, "decode", lambda self, latents: whole(self, latents) * float("nan"))
    cell = drawn(grid_of(t, tmp_path, path, strengths=(1.0,))).book.cells[0][1, 0]
    assert isinstance(cell, Failed) and cell.reason.startswith("vae: ")
    monkeypatch.undo()
    assert isinstance(drawn(grid_of(t, tmp_path, path, strengths=(1.0,))).book.cells[0][1, 0], Path), "nothing is left of it"


def test_a_lokr_of_whole_halves_has_no_use_for_its_alpha(tiny, tmp_path):
    """ai-toolkit's is 9999999999, which is infinite in half precision; the stock loader does not look at it."""

    def whole(tensors):
        out = {k: v for k, v in tensors.items() if ".lokr_w2_" not in k}
        out |= {k[:-2]: v @ tensors[k[:-1] + "b"] for k, v in tensors.items() if k.endswith(".lokr_w2_a")}
        return {k: torch.tensor(9999999999.0).half() if k.endswith(".alpha") else v for k, v in out.items()}

    t = tiny("sd15")
    path = write_lora(t, tmp_path / "x.safetensors", change=whole, algorithm="LoKr")
    grid = drawn(grid_of(t, tmp_path, path, strengths=(1.0,)))
    assert alike(pixels(grid, 0, (1, 0)), stock(t, path, 1.0, "a fox", sampling()))
    assert not np.array_equal(pixels(grid, 0, (1, 0)), pixels(grid, 0, (0, 0)))


def readers(t) -> int:
    from comfy.sd1_clip import SDClipModel

    return sum(isinstance(module, SDClipModel) for module in t.text.clip.cond_stage_model.modules())


class Passes:
    """Counts the passes of the diffusion network and of the text encoders while it lasts, and the pictures of each."""

    def __init__(self, t):
        self.rows: list[int] = []
        self.text: list[int] = []
        self._t = t

    def __enter__(self) -> Passes:
        from comfy.sd1_clip import SDClipModel

        readers = [module for module in self._t.text.clip.cond_stage_model.modules() if isinstance(module, SDClipModel)]
        watched = [(self._t.model.base.diffusion_model, self.rows), *((reader, self.text) for reader in readers)]
        self._handles = [
            module.register_forward_pre_hook(lambda _m, given, rows=rows: rows.append(len(given[0]))) for module, rows in watched
        ]
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize(("together", "batches"), [(0, [8, 8, 8, 6]), (5, [5] * 6), (7, [7, 7, 7, 7, 2])])
def test_batches_are_filled_across_files(tiny, tmp_path, together, batches):
    """6 epochs at 5 strengths: as many passes of the network as full batches take, each of one cell for the control before."""
    t, steps, strengths = tiny("sd3"), 3, (0.2, 0.4, 0.6, 0.8, 1.0)
    paths = [write_lora(t, tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(6)]
    with Passes(t) as counted:
        grid = drawn(grid_of(t, tmp_path, *paths, strengths=strengths, how={"steps": steps, "cfg": 1.0}, together=together))
    assert counted.rows == [size for size in (1, *batches) for _ in range(steps)]
    assert counted.text == [2] * len(counted.text) and len(counted.text) == readers(t), "prompt and negative in one pass"
    assert grid.book.cells[0].keys() == {(0, 0), *((x, y) for x in range(1, 7) for y in range(5))}
    shown = [pixels(grid, 0, (x, y)) for x in range(1, 7) for y in range(5)]
    assert all(np.abs(a - b).max() > 4 for i, a in enumerate(shown) for b in shown[:i])


def test_pictures_of_one_batch_are_those_of_the_stock_nodes(tiny, tmp_path):
    """Files side by side, with and without a part in the text encoder, of several ranks, and a strength for each."""
    t, strengths = tiny("sd15"), (1.0, -0.7)
    paths = [
        write_lora(t, tmp_path / "1.safetensors", seed=1, text=True), write_lora(t, tmp_path / "2.safetensors", seed=2, rank=4),
        write_lora(t, tmp_path / "3.safetensors", seed=3, text=True, rank=1),
    ]  # fmt: skip
    with Passes(t) as counted:
        grid = drawn(grid_of(t, tmp_path, *paths, strengths=strengths, prompts=("a fox", "an owl")))
    assert counted.rows == [2, 2] * 2 + [12, 12] * 2
    # Two prompts and the empty one, plain; then the same for two files at two strengths, of 77 tokens each, in lots of four.
    assert counted.text == [3, 4, 4, 4]
    alone = drawn(grid_of(t, tmp_path / "alone", *paths, strengths=strengths, prompts=("a fox", "an owl"), together=1))
    for page, prompt in enumerate(("a fox", "an owl")):
        for place in ((x, y) for x in (1, 2, 3) for y in (0, 1)):
            found = pixels(grid, page, place)
            assert np.abs(found - pixels(alone, page, place)).max() <= 1, (page, place)
            if place[0] == 2:  # what is merged into a text encoder of random weights rounds otherwise than what is beside it
                assert alike(found, stock(t, paths[1], strengths[place[1]], prompt, sampling())), (page, place)
    assert np.abs(pixels(grid, 0, (1, 0)) - stock(t, paths[0], 1.0, "a fox", sampling())).mean() < 0.3


def test_recorded_passes_draw_the_same_pictures_bit_for_bit(tiny, tmp_path, monkeypatch):
    """What surrounds a CUDA graph, with a recorder that runs everything again."""
    t = tiny("sd15")
    paths = [write_lora(t, tmp_path / f"{seed}.safetensors", seed=seed, text=seed == 2) for seed in (1, 2, 3)]
    how = {"how": {"steps": 6}, "together": 4}
    expected = drawn(grid_of(t, tmp_path / "as always", *paths, **how))
    captured = []

    class Counting(EagerRecorder):
        def capture(self, work):
            captured.append(work)
            return super().capture(work)

    monkeypatch.setattr(host.Model, "recorder", lambda self: Counting())
    grid = drawn(grid_of(t, tmp_path / "recorded", *paths, **how))
    assert grid.brush.network.replays > 10
    assert len(captured) == 2, "one for the full batches, one for the last cell"
    for place in expected.book.cells[0]:
        assert np.array_equal(pixels(grid, 0, place), pixels(expected, 0, place)), place
    assert "forward" not in vars(t.model.base.diffusion_model)


def test_a_file_that_gives_no_numbers_costs_its_own_cells_of_a_batch(tiny, tmp_path):
    t = tiny("sd15")
    good, other = (write_lora(t, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    wild = write_lora(t, tmp_path / "wild.safetensors", change=lambda x: {k: v * 1e30 if v.ndim else v for k, v in x.items()})
    with Passes(t) as counted:
        grid = drawn(grid_of(t, tmp_path, good, wild, other, strengths=(0.5, 1.0)))
    assert counted.rows == [2, 2, 12, 12] and grid.together == 6, "nobody is drawn a second time for it"
    for row in range(2):
        failed = grid.book.cells[0][2, row]
        assert isinstance(failed, Failed) and failed.reason.startswith("model: what this SD15 model drew is NaN or infinite")
        for column, path in ((1, good), (3, other)):
            assert alike(pixels(grid, 0, (column, row)), stock(t, path, (0.5, 1.0)[row], "a fox", sampling()))


def test_a_file_whose_layers_are_passed_by_is_merged_and_the_others_are_not(tiny, tmp_path, monkeypatch):
    t = tiny("sd3")
    good, passed = (write_lora(t, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    merged, real, real_merged = [], cell_renderer.CellRenderer.beside, lora.Lora.merged

    def refuse(brush, orders, page):
        if bad := [order.lora for order in orders if order.lora.name == passed.name]:
            raise side_by_side.UnusedLayers("one layer was passed by", [bad[0].of_model])
        return real(brush, orders, page)

    monkeypatch.setattr(cell_renderer.CellRenderer, "beside", refuse)
    monkeypatch.setattr(lora.Lora, "merged", lambda self, *how: merged.append(self.name) or real_merged(self, *how))
    grid = drawn(grid_of(t, tmp_path, good, passed, strengths=(0.5, 1.0)))
    assert set(merged) == {passed.name}
    assert np.array_equal(pixels(grid, 0, (2, 1)), stock(t, passed, 1.0, "a fox", sampling()))
    assert alike(pixels(grid, 0, (1, 1)), stock(t, good, 1.0, "a fox", sampling()))


def test_files_that_need_memory_make_smaller_batches(tiny, tmp_path, monkeypatch):
    """What stands beside the model counts, and what may come later is the first to go."""
    t, asked, grids = tiny("sd3"), [], []
    paths = [write_lora(t, tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(4)]
    layer_sizes = sum(2 * sum(b.shape) for b in opened(t, paths[0]).of_model.values())  # rank 2, one number for each in and out

    def fits(self, wanted, size, beside=0, references=0):
        asked.append(beside + sum(grid.brush.network.beside.bytes for grid in grids))
        return min(wanted, 3 if asked[-1] > 2 * 4 * layer_sizes else 8)

    monkeypatch.setattr(host.Model, "pictures_that_fit", fits)
    with Passes(t) as counted:
        grids.append(grid_of(t, tmp_path, *paths, strengths=(0.5, 1.0), how={"cfg": 1.0, "steps": 1}))
        drawn(grids[0])
    assert max(asked) == 4 * 4 * layer_sizes, "four files in fp32"
    assert counted.rows == [1, 3, 3, 2]
    assert alike(pixels(grids[0], 0, (4, 1)), stock(t, paths[3], 1.0, "a fox", sampling(cfg=1.0, steps=1)))


def test_a_file_is_let_go_of_with_its_last_cell(tiny, tmp_path, monkeypatch):
    t, alive = tiny("sd3"), []
    paths = [write_lora(t, tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(5)]
    known: weakref.WeakSet = weakref.WeakSet()
    real = lora.Lora.__init__

    def opening(self, *given):
        gc.collect()
        alive.append(len(known))
        known.add(self)
        real(self, *given)

    monkeypatch.setattr(lora.Lora, "__init__", opening)
    drawn(grid_of(t, tmp_path, *paths, strengths=(0.5, 1.0), how={"steps": 1}, together=2))
    gc.collect()
    assert max(alive) <= 1 and not known


def test_files_of_one_content_are_drawn_once(tiny, tmp_path):
    t = tiny("sd3")
    paths = [write_lora(t, tmp_path / f"{name}.safetensors") for name in ("one", "other")]
    with Passes(t) as counted:
        grid = drawn(grid_of(t, tmp_path, *paths, strengths=(0.5, 1.0), how={"cfg": 1.0, "steps": 1}))
    assert counted.rows == [1, 2]
    assert grid.remarks() == ["epoch 2 gives the same pictures as epoch 1."]


def test_a_disk_that_takes_nothing_is_told(tiny, tmp_path, monkeypatch):
    t = tiny("sd3")
    path = write_lora(t, tmp_path / "ink.safetensors")
    monkeypatch.setattr(cells.CellStore, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        drawn(grid_of(t, tmp_path, path, strengths=(1.0,), how={"steps": 1}))


def test_each_file_is_read_once_and_each_prompt_encoded_once(tiny, tmp_path, monkeypatch):
    t = tiny("sd15")
    plain, reading = (write_lora(t, tmp_path / f"{x}.safetensors", seed=x, text=x == 2) for x in (1, 2))
    read, encoded = [], []
    real_read, real_encode = mean.read_tensors, host.TextEncoder.for_sampling_all
    monkeypatch.setattr(mean, "read_tensors", lambda path, *more: read.append(path.stem) or real_read(path, *more))

    def encode(self, texts, *more):
        encoded.extend(texts)
        return real_encode(self, texts, *more)

    monkeypatch.setattr(host.TextEncoder, "for_sampling_all", encode)
    drawn(grid_of(t, tmp_path, plain, prompts=("a fox", "an owl"), seeds=(1, 2), strengths=(0.5, 1.0)))
    assert read == ["1"] and sorted(encoded) == ["", "a fox", "an owl"]
    encoded.clear()
    drawn(grid_of(t, tmp_path, plain, reading, prompts=("a fox", "an owl"), seeds=(1, 2), strengths=(0.5, 1.0)))
    assert read == ["1", "2"], "what is drawn already needs no file"
    assert sorted(encoded) == sorted(["", "a fox", "an owl"] * 2), "with a text part: once a strength"


def test_a_cancelled_grid_keeps_and_shows_what_there_is_and_goes_on(tiny, tmp_path):
    import comfy.model_management

    t = tiny("sd3")
    path = write_lora(t, tmp_path / "ink.safetensors")
    grid, hooked = grid_of(t, tmp_path, path, prompts=("a fox", "an owl")), hooks(t)

    def cancel(done: int, page) -> None:
        if done == 4:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException), torch.inference_mode():
        grid.render(cancel)
    assert hooks(t) == hooked
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "grids" / "cells").glob("*.png")}
    assert len(kept) == 4 and all(path.is_file() for path in grid.save_pages())
    again = drawn(grid_of(t, tmp_path, path, prompts=("a fox", "an owl")))
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "grids" / "cells").glob("*.png")}
    assert len(now) == again.axes.cells == 8 and kept.items() <= now.items()


def test_pages_say_what_they_show_and_what_was_measured(tiny, tmp_path):
    t = tiny("sd3")
    paths = [write_lora(t, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    pictures = []
    for i in range(3):
        pictures.append(tmp_path / f"{i}.png")
        Image.effect_noise((64, 64), 20 + 30 * i).convert("RGB").save(pictures[-1])
    lines = []
    grid = grid_of(
        t, tmp_path, *paths, strengths=(0.5, 1.0), seeds=(3, 4), base="base (SD3)", judge=Judge(ColoursAndEdges(), pictures),
        losses={"ink": {10: (0.2, 0.3), 20: (0.1, 0.2)}}, show=lines.append,
    )  # fmt: skip
    pages = drawn(grid).save_pages()
    assert len(pages) == 2
    with Image.open(pages[1]) as page:
        facts = json.loads(page.text["lora_atelier.grid"])
        assert page.text["workflow"] == "{}"
    assert facts["strengths"] == [0.5, 1.0] and facts["seed"] == 4 and facts["prompt"] == "a fox"
    assert [e["epoch"] for e in facts["epochs"]] == [1, 2]
    assert set(facts["cells"]) == {"0,0", "1,0", "1,1", "2,0", "2,1"} == set(facts["scores"])
    assert (pages[1].parent / facts["cells"]["2,1"]["file"]).is_file()
    (hint,) = [line for line in grid.notes() if line.startswith("Hint: ")]
    assert hint.startswith("Hint: By colours and edges, all 2 pages together: ")
    assert f"Hint: {facts['advice']['reason']}".startswith(hint)
    assert "held out 0.1000" in grid.notes()[1] and "at 0.5: like the dataset" in grid.notes()[1]
    assert lines[0] == "10 cells of 64 x 64 px on 2 pages" and "s a cell" in lines[1] and lines[-1].startswith("cell 10 of 10")
    with Image.open(grid.book.cells[1][2, 1]) as cell:
        known = json.loads(cell.text[cells.KEY])
        assert (known["epoch"], known["strength"], known["seed"], known["prompt_text"]) == (2, 1.0, 4, "a fox")
        assert known["lora_content"] == cells.Contents().of(paths[1])


def test_pictures_that_cannot_differ_are_told(tiny, tmp_path):
    """Two files of one content, and strengths that reach nothing."""
    t = tiny("sd3")
    one = write_lora(t, tmp_path / "1.safetensors")
    other = write_lora(t, tmp_path / "2.safetensors")
    silent = write_lora(t, tmp_path / "3.safetensors", change=lambda tensors: {k: v * 0 for k, v in tensors.items()})
    grid = drawn(grid_of(t, tmp_path, one, other, silent, strengths=(0.0, 0.5, 1.0), together=1))
    assert grid.remarks() == [
        "epoch 2 gives the same pictures as epoch 1.",
        "epoch 3 changes nothing here at strength 0.5 and 1: the picture is the one without a LoRA.",
    ]
    assert grid.notes()[-2:] == grid.remarks()


def test_layers_of_another_model_are_counted_and_named(tiny, tmp_path):
    t = tiny("sd3")
    _, names = adaptable_layers(t.model, t.text)
    known = next(name for those in names.values() for name in those)
    stranger = {f"lora_unet_foreign_{i}.lora_{part}.weight": torch.zeros(2, 2) for i in range(3) for part in ("up", "down")}
    mixed = write_lora(t, tmp_path / "mixed.safetensors", change=lambda tensors: tensors | stranger)
    count = len(safe_open(mixed, framework="pt").keys()) // 3 - 2  # up, down and alpha of each, the strangers without alpha
    grid = drawn(grid_of(t, tmp_path, mixed, strengths=(1.0,)))
    assert any(
        line.startswith(f"epoch 1: 3 of the {count + 3} layers in the file, such as lora_unet_foreign_0,")
        for line in grid.notes()
    )
    again = drawn(grid_of(t, tmp_path, mixed, strengths=(1.0,)))
    assert again.remarks() == grid.remarks(), "also when every cell was drawn before"
    whole = write_lora(t, tmp_path / "whole.safetensors", change=lambda tensors: tensors | {f"{known}.diff_b": torch.zeros(2)})
    assert lora.passed_over(whole, names) == ""
    save_file(stranger, tmp_path / "other.safetensors")
    assert lora.passed_over(tmp_path / "other.safetensors", names) == ""
    failed = drawn(grid_of(t, tmp_path, tmp_path / "other.safetensors", strengths=(1.0,))).book.cells[0][1, 0]
    assert isinstance(failed, Failed) and "none of its 3 layers belongs to this model (SD3)" in failed.reason
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    assert lora.passed_over(tmp_path / "none.safetensors", names) == ""


def test_a_cell_of_another_size_than_asked_is_told(tiny, tmp_path):
    t = tiny("sd3")
    (said,) = grid_of(t, tmp_path, how={"width": 76}).remarks()
    assert said.startswith("width, height: 76 x 64 is drawn at 72 x 64")


def test_a_cell_is_another_when_anything_that_counts_is_another():
    one = cells.CellFacts("a fox", "ink", "hash", 3, 1.0, 1.0, sampling())
    same = dataclasses.replace(one, lora="renamed", epoch=4)
    assert same.key("base") == one.key("base")
    others = [
        dataclasses.replace(one, **change)
        for change in ({"prompt_text": "x"}, {"lora_content": "x"}, {"strength": 0.9}, {"text_strength": 0.9})
    ]
    others += [dataclasses.replace(one, sampling=sampling(**{name: 7})) for name in ("steps", "cfg", "width", "seed", "height")]
    others += [dataclasses.replace(one, sampling=sampling(**{name: "x"})) for name in ("negative", "sampler", "scheduler")]
    assert len({fact.key("base") for fact in [one, *others]} | {one.key("other base")}) == len(others) + 2


def test_pages_go_on_the_wire_in_one_size_and_not_beyond_what_memory_holds():
    from lora_atelier.training.grid import pixels as sheets

    batch = sheets.to_batch([Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 50), "red")])
    assert batch.shape == (2, 50, 40, 3) and batch[1, 0, 39].tolist() == [1, 1, 1] and batch[0, 0, 0].tolist() == [1, 0, 0]
    large = sheets.to_batch([Image.new("L", (16_000, 12_000)).convert("RGB")])
    assert large.shape[1] * large.shape[2] <= sheets.BATCH_PIXELS and large.shape[2] / large.shape[1] == pytest.approx(
        4 / 3, rel=1e-3
    )


def test_conditionings_are_joined_only_if_each_row_keeps_its_own():
    def one(value: float, tokens: int = 2, **extra):
        return [[torch.full((1, tokens, 3), value), {"pooled_output": torch.full((1, 4), value), **extra}]]

    first = one(1)
    assert lora.join([first, first]) is first
    ((text, extra),) = lora.join([first, one(2)])
    assert text[:, 0, 0].tolist() == [1, 2] and extra["pooled_output"][:, 0].tolist() == [1, 2]
    assert lora.join([first, one(2, tokens=4)]) is None
    assert lora.join([first, one(2, mask=torch.ones(1))]) is None
    assert lora.join([one(1, mask=torch.ones(1)), one(2, mask=torch.ones(1))]) is None
    assert lora.join([first, [*one(2), *one(3)]]) is None
