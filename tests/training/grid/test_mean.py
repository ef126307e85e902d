"""Means of saved epochs: what they are by plain arithmetic, what the stock loader draws of their files, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_atelier.training import files, host
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid import advice, cell_renderer, file_names, gallery, lora, mean, plan, render
from lora_atelier.training.grid.axes import parse_epochs
from lora_atelier.training.grid.cells import contents
from lora_atelier.training.grid.files import as_runs, read_metadata
from lora_atelier.training.grid.foreseen import missing_epochs
from lora_atelier.training.grid.judge import judged, table
from lora_atelier.training.grid.score import Score
from lora_atelier.training.network.scope import adaptable_layers
from lora_atelier.training.runs.metadata import is_whole
from lora_atelier.training.runs.record import SavedLoRA
from lora_atelier.training.runs.run import Epochs
from lora_atelier.training.tensors.safetensors_header import add_metadata, read_header
from safetensors.torch import save_file

from .test_plan import labels, run
from .test_render import alike, drawn, hooks, pixels, sampling, write_lora

# In fp32 a sum of few products differs by its order alone.
ROUNDING = 1e-5


def mean_column(*paths: Path) -> plan.Column:
    saved = tuple(SavedLoRA(path, number, number * 10) for number, path in enumerate(paths, 3))
    return plan.Column(saved[-1], "ink", f"mean 3-{len(paths) + 2}", mean_of=saved)


def grid_of(t, folder: Path, *paths: Path, strengths=(0.6, 1.0), text=None) -> render.Grid:
    axes = plan.Axes(("a fox",), (mean_column(*paths),), strengths, (3,), text)
    return render.Grid(t.model, t.text, t.codec, axes, sampling(), folder / "grids", {"workflow": "{}"})


def laid_in_turn(t, paths: list[Path], strength: float):
    """MODEL and CLIP behind a LoraLoader for each of the files, at an equal share of the strength."""
    model, clip = t.model.patcher, t.text.clip
    with torch.inference_mode():
        for path in paths:
            share = strength / len(paths)
            model, clip = host.Model(model).with_lora(clip, files.read_tensors(path, "look"), share, share)
    return model, clip


def stock(t, paths: list[Path], strength: float) -> np.ndarray:
    with torch.inference_mode():
        model, clip = laid_in_turn(t, paths, strength)
        brush = cell_renderer.CellRenderer(host.Model(model), host.TextEncoder(clip), t.codec, sampling())
        return np.asarray(brush.plain(plan.Page("a fox", 3)), dtype=int)


def changes(before, after) -> dict[str, torch.Tensor]:
    """What the patches of the host make of weights that are zero, by its own arithmetic."""
    import comfy.lora

    out = {}
    for key, patches in after.patches.items():
        own = patches[len(before.patches.get(key, ())) :]
        weight = torch.zeros(before.get_model_object(key).shape if hasattr(before, "get_model_object") else ())
        if own:
            out[key] = comfy.lora.calculate_weight(own, weight, key)
    return out


def written(t, folder: Path, count: int, **how) -> list[Path]:
    return [write_lora(t, folder / f"ink-{number:06d}.safetensors", seed=number, **how) for number in range(3, 3 + count)]


@pytest.mark.parametrize(
    ("name", "text", "how"),
    [("sd15", True, {}), ("sd3", False, {}), ("sd3", False, {"algorithm": "LoKr"}), ("sd3", True, {"algorithm": "LoHa"})],
    ids=["LoRA, text too", "LoRA", "LoKr", "LoHa, text too"],
)
def test_a_mean_is_its_files_in_the_stock_loader_at_equal_shares(tiny, tmp_path, name, text, how):
    t = tiny(name)
    paths = written(t, tmp_path, 3, text=text, **how)
    before, hooked = t.model.identity(), hooks(t)
    grid = drawn(grid_of(t, tmp_path, *paths))
    assert t.model.identity() == before and hooks(t) == hooked
    opened = lora.Lora(paths, t.model, t.text, *adaptable_layers(t.model, t.text))
    assert opened.beside == (not how) and len(opened.files) == (3 if how else 1)
    for row, strength in enumerate((0.6, 1.0)):
        expected = stock(t, paths, strength)
        assert alike(pixels(grid, 0, (1, row)), expected), strength
        assert np.abs(expected - stock(t, paths[-1:], strength)).max() > 4, "it is none of its files"
    with torch.inference_mode():
        ours, of_text = opened.merged(1.0, 1.0)
        model, clip = laid_in_turn(t, paths, 1.0)
    for mine, its, base in (
        (ours.patcher, model, t.model.patcher), (of_text.clip.patcher, clip.patcher, t.text.clip.patcher),
    ):  # fmt: skip
        found, wanted = changes(base, mine), changes(base, its)
        assert found.keys() == wanted.keys() and (bool(found) or its is clip.patcher)
        for key, change in wanted.items():
            assert (found[key] - change).abs().max() <= ROUNDING * change.abs().max(), key
    again = grid_of(t, tmp_path, *reversed(paths))
    assert drawn(again).book.cells[0][1, 0] == grid.book.cells[0][1, 0], "found again, whatever their order"


def change_of(tensors, stem: str, down: str, up: str) -> np.ndarray:
    """scale * B A as matrices, by numpy in double precision."""
    b, a = (tensors[stem + part].double().flatten(1).numpy() for part in (up, down))
    scale = float(tensors[f"{stem}.alpha"]) / len(a) if f"{stem}.alpha" in tensors else 1.0
    return scale * (b @ a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("stem", "down", "up"),
    [("lora_unet_a", ".lora_down.weight", ".lora_up.weight"), ("diffusion_model.a", ".lora_A.weight", ".lora_B.weight")],
    ids=["kohya", "PEFT"],
)
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "convolution"])
def test_a_mean_of_any_ranks_and_alphas_is_plain_arithmetic(dtype, stem, down, up, kernel):
    """Also where a file leaves a layer alone, and where one says nothing of alpha."""
    stream = torch.Generator().manual_seed(0)
    given = []
    for rank, alpha in ((2, 1.0), (5, 4.0), (3, None)):
        a, b = torch.randn(rank, 6, *kernel, generator=stream), torch.randn(7, rank, *[1] * len(kernel), generator=stream)
        given.append({stem + down: a.to(dtype), stem + up: b.to(dtype)})
        given[-1] |= {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}
    given.append({"lora_unet_b.diff_b": torch.full((4,), 2.0)})
    found = mean.combined([Path(f"{i}.safetensors") for i in range(4)], given)
    assert found is not None and len(found[stem + down]) == 10
    expected = sum(change_of(one, stem, down, up) for one in given[:3]) / 4
    assert np.abs(change_of(found, stem, down, up) - expected).max() <= 1e-6 * np.abs(expected).max()
    assert found["lora_unet_b.diff_b"].tolist() == [0.5] * 4
    if not stem.startswith("lora_"):
        assert float(found[f"{stem}.alpha"]) == 10, "PEFT's readers take it for the rank"


def test_epochs_of_one_scale_are_joined_without_a_rounding(tiny, tmp_path):
    t = tiny("sd15")
    paths = written(t, tmp_path, 3, alpha=1.0)
    given = [{k: v.half() for k, v in files.read_tensors(path, "look").items()} for path in paths]
    found = mean.combined(paths, given)
    down = next(key for key in found if key.endswith(".lora_down.weight"))
    assert torch.equal(found[down], torch.cat([one[down] for one in given])) and found[down].dtype == torch.float16
    assert float(found[down.replace(".lora_down.weight", ".alpha")]) == 1.0


def test_what_has_no_mean_is_refused_by_name(tiny, tmp_path):
    t = tiny("sd3")
    paths = written(t, tmp_path, 2, weight_decompose=True)
    (cell,) = [cell for place, cell in drawn(grid_of(t, tmp_path, *paths, strengths=(1.0,))).book.cells[0].items() if place[0]]
    assert "ink-000003.safetensors is a DoRA" in cell.reason and "no mean" in cell.reason
    two = [Path("a.safetensors"), Path("b.safetensors")]
    pair = {"lora_unet_a.lora_down.weight": torch.ones(2, 3), "lora_unet_a.lora_up.weight": torch.ones(4, 2)}
    with pytest.raises(AtelierError, match=r"b\.safetensors has parts that are not added to a weight, such as a\.set_weight"):
        mean.combined(two, [pair, {"a.set_weight": torch.ones(2)}])
    with pytest.raises(AtelierError, match="other sizes in some of them"):
        mean.combined(two, [pair, {**pair, "lora_unet_a.lora_up.weight": torch.ones(5, 2)}])
    with pytest.raises(AtelierError, match=r"b\.safetensors has no whole pair"):
        mean.combined(two, [pair, {"lora_unet_a.lora_up.weight": torch.ones(4, 2)}])


def test_a_kept_mean_draws_the_same_says_what_is_true_and_is_no_epoch(tiny, tmp_path):
    t = tiny("sd15")
    paths = written(t, tmp_path, 3, text=True)
    for number, path in enumerate(paths, 3):
        add_metadata(path, {"ss_epoch": str(number), "ss_steps": "9", "lora_atelier.step": "9", "ss_network_dim": "2",
                            "ss_output_name": "ink", "modelspec.title": "ink", "ss_base_model_version": "sd_v1",
                            "ss_network_args": '{"conv_dim": "2"}'})  # fmt: skip
    loras = tmp_path / "loras"
    loras.mkdir()
    kept = mean.keep(paths, "ink-mean-3-5", loras)
    assert kept == loras / "ink-mean-3-5.safetensors" and is_whole(kept)
    said = read_header(kept).metadata
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_output_name"]) == ("6", "2.0", "ink-mean-3-5")
    assert said["ss_base_model_version"] == "sd_v1" and not said.keys() & {"ss_epoch", "ss_steps", "lora_atelier.step"}
    assert json.loads(said[file_names.MEAN_OF]) == [path.name for path in paths]
    assert alike(stock(t, [kept], 0.6), pixels(drawn(grid_of(t, tmp_path, *paths)), 0, (1, 0)))
    stamp = kept.stat().st_mtime_ns
    assert mean.keep(paths, "ink-mean-3-5", loras) == kept and kept.stat().st_mtime_ns == stamp, "the same again is no mistake"
    with pytest.raises(AtelierError, match=r"name: ink-mean-3-5\.safetensors is there already and is another LoRA"):
        mean.keep(paths[:2], "ink-mean-3-5", loras)
    other = mean.keep(paths[:2], "ink-mean-3-4", loras)
    runs = as_runs(
        [one.name for one in (kept, other, paths[2])], lambda name: (loras if "mean" in name else tmp_path) / name, read_metadata
    )
    assert [(one.name, len(one.files), one.files[0].epoch) for one in runs][:2] == [
        ("ink-mean-3-5", 1, 0),
        ("ink-mean-3-4", 1, 0),
    ]
    with pytest.raises(AtelierError, match="name: "):
        mean.keep(paths, "../out", loras)


def test_convolutions_tell_their_rank():
    tensors = {"a.lora_down.weight": torch.ones(6, 2), "b.lora_down.weight": torch.ones(9, 2, 3, 3), "b.alpha": torch.tensor(3.0)}
    said = mean.described({"ss_network_args": '{"conv_dim": "3", "algo": "lora"}'}, tensors, [Path("a")], "x")
    assert said["ss_network_dim"] == "Dynamic" and json.loads(said["ss_network_args"]) == {"conv_dim": "9", "algo": "lora"}


def test_products_are_no_single_file(tiny, tmp_path):
    t = tiny("sd3")
    paths = written(t, tmp_path, 2, algorithm="LoKr")
    with pytest.raises(AtelierError, match=r"cannot be kept as one file\. .* 2 loaders, each at 0\.5"):
        mean.keep(paths, "mean", tmp_path / "loras")


def test_means_are_columns_behind_the_epochs_or_alone():
    ink, wash = run("ink", 1, 2, 3, 4), run("wash", 1, 3)
    assert labels([ink], "all, mean 2-4") == ["epoch 1", "epoch 2", "epoch 3", "epoch 4", "mean 2-4"]
    assert labels([ink], "mean 2-4; 4, Mean 1 3 last") == ["epoch 4", "mean 2-4", "mean 1 3 last"]
    assert labels([ink], "every 2, mean of 1 - 3") == ["epoch 2", "epoch 4", "mean 1-3"]
    assert labels([ink], "mean 1-4(+2) 4") == ["mean 1-4(+2) 4"]
    assert labels([ink, wash], "last, mean 1 3") == ["ink epoch 4", "ink mean 1 3", "wash epoch 3", "wash mean 1 3"]
    (column,) = plan.columns_of([ink], parse_epochs("mean 1 3 last"))
    assert [path.name for path in column.paths] == ["ink1.safetensors", "ink3.safetensors", "ink4.safetensors"]
    swept = [replace(one, recipe="ink", varied=f"rank={rank}") for one, rank in ((ink, 4), (wash, 8))]
    assert labels(swept, "mean 1 3") == ["rank 4 mean 1 3", "rank 8 mean 1 3"]
    steps = Epochs("ink", "", tuple(SavedLoRA(Path(f"{n}.safetensors"), 1, n, "step") for n in (100, 200, 300)))
    assert labels([steps], "mean 100 200") == ["mean 100 200"]
    within = Epochs("ink", "", (SavedLoRA(Path("s"), 2, 15, "step"), SavedLoRA(Path("a"), 1, 10), SavedLoRA(Path("b"), 2, 20)))
    (column,) = plan.columns_of([within], parse_epochs("mean 1-2"))
    assert [path.name for path in column.paths] == ["a", "b"], "a file on the way is not the epoch's"


@pytest.mark.parametrize(
    "text", ["mean", "mean 3", "mean 3 3", "mean 1.5 2", "mean all", "mean -1 2", "all mean 3-5", "meaning 3"]
)
def test_a_mean_that_cannot_be_read_is_refused_by_name(text):
    with pytest.raises(AtelierError, match="which_epochs"):
        parse_epochs(text)


def test_an_epoch_that_a_mean_lacks_is_told():
    with pytest.raises(AtelierError, match=r"mean 3-5 needs epoch 4, which was not saved; there are 3, 5\."):
        plan.columns_of([run("ink", 3, 5)], parse_epochs("all, mean 3-5"))
    with pytest.raises(AtelierError, match="would be one of a single file"):
        plan.columns_of([run("ink", 3, 5)], parse_epochs("mean 5 last"))
    both = [run("ink", 3, 4, 5), run("wash", 3, 5)]
    assert labels(both, "mean 3-5") == ["mean 3-5"]
    assert plan.remarks(both, parse_epochs("mean 3-5"), (1.0,)) == [
        "wash: which_epochs: mean 3-5 needs epoch 4, which was not saved; there are 3, 5."
    ]
    assert plan.remarks(both[:1], parse_epochs("mean 3-5"), (1.0,)) == []
    (told,) = missing_epochs(["all, mean 3-5"], run("ink", 3, 5).files)
    assert "mean 3-5 needs 4" in told and missing_epochs(["mean 3 5"], run("ink", 3, 5).files) == []


def test_a_mean_is_measured_and_never_recommended():
    """Its run's losses are none of its own, and it is no earlier or later epoch."""
    columns = plan.columns_of([run("ink", 1, 2)], parse_epochs("all, mean 1-2"))
    axes = plan.Axes(("a",), columns, (1.0,), (0,))
    losses = {"ink": {10: (0.3, 0.2), 20: (0.1, 0.2)}}
    found = judged(axes, losses, None)
    assert [one.held_out for one in found] == [0.3, 0.1, None]
    assert advice.recommend(found, None).epoch == "epoch 2"
    assert len(table(axes, found, None)) == 2
    scale = advice.Scale(0.5, Score(0.2, 0.4, 1.0))
    scored = [replace(one, held_out=None, scores={1.0: Score(0.6 + 0.2 * one.is_mean, 0.4, 0.8)}) for one in found]
    said = advice.recommend(scored, scale)
    assert said.epoch == "epoch 1" and "mean" not in said.reason
    assert advice.recommend(scored[2:], scale).epoch is None


def test_pages_and_cells_say_of_what_a_mean_is(tiny, tmp_path):
    t = tiny("sd3")
    paths = written(t, tmp_path / "", 2)
    grid = drawn(grid_of(t, tmp_path / "runs" / "ink", *paths, strengths=(1.0,)))
    (page,) = grid.save_pages()
    _, facts = gallery.page(tmp_path / "runs", "ink", page.stem)
    assert facts["epochs"] == [
        {"file": paths[1].name, "label": "mean 3-4", "epoch": None, "step": None, "mean": [path.name for path in paths]}
    ]
    assert contents.of_all(paths) == contents.of_all(paths[::-1]) not in (contents.of(paths[0]), contents.of_all(paths[:1]))
    save_file({"x": torch.ones(1)}, paths[0])
    assert contents.of_all(paths) != grid.keeper._facts(None, 0, 0).lora_content
    paths[0].unlink()
    (cell,) = [c for place, c in drawn(grid_of(t, tmp_path / "b", *paths, strengths=(1.0,))).book.cells[0].items() if place[0]]
    assert "ink-000003.safetensors is gone" in cell.reason
