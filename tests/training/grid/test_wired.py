"""Cells through SAMPLER, SIGMAS and GUIDER wires: what the stock SamplerCustomAdvanced draws, kept by what the wires hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_atelier.training import files, host
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid import cell_renderer, plan
from PIL import Image

from .test_render import alike, drawn, grid_of, hooks, pixels, sampling, write_lora

NEGATIVE = "blurry"


def out(result):
    """The first output of a stock node."""
    return result.args[0] if hasattr(result, "args") else result[0]


def nodes():
    from comfy_extras import nodes_align_your_steps, nodes_custom_sampler, nodes_flux, nodes_perpneg

    return nodes_custom_sampler, nodes_align_your_steps, nodes_flux, nodes_perpneg


def samplers(name: str):
    custom = nodes()[0]
    if name == "sde":
        return out(custom.SamplerDPMPP_SDE.execute(0.7, 0.9, 0.4, "cpu"))
    return out(custom.KSamplerSelect.execute(name))


def levels(name: str, model):
    custom, ays, flux, _ = nodes()
    if name == "ays":
        return out(ays.AlignYourStepsScheduler.execute("SD1", 3, 1.0))
    if name == "flux2":
        return out(flux.Flux2Scheduler.execute(3, 64, 64))
    return out(custom.BasicScheduler.execute(model, "karras", 3, 1.0))


def guiders(name: str, model, read, prompt: str, negative: str = NEGATIVE):
    custom, _, _, perpneg = nodes()
    positive, against = read(prompt), read(negative)
    if name == "basic":
        return out(custom.BasicGuider.execute(model, positive))
    if name == "dual":
        return out(custom.DualCFGGuider.execute(model, positive, read("paper"), against, 3.0, 2.0, "regular"))
    if name == "perpneg":
        return out(perpneg.PerpNegGuider.execute(model, positive, against, read(""), 3.0, 0.7))
    return out(custom.CFGGuider.execute(model, positive, against, 3.5))


def stock(t, path: Path | None, wires, prompt: str = "a fox", strength: float = 1.0, seed: int = 3) -> np.ndarray:
    """LoraLoader, CLIPTextEncode, a guider node, SamplerCustomAdvanced, VAEDecode and SaveImage."""
    custom = nodes()[0]
    sampler, schedule, guider = wires
    with torch.inference_mode():
        tensors = files.read_tensors(path, "look") if path is not None else {}
        model, clip = t.model.with_lora(t.text.clip, tensors, strength, strength) if path else (t.model.patcher, t.text.clip)
        text = host.TextEncoder(clip)
        latent = {"samples": torch.zeros(1, t.channels, 8, 8)}
        noise = out(custom.RandomNoise.execute(seed))
        guides = guiders(guider, model, text.for_sampling, prompt)
        found = out(
            custom.SamplerCustomAdvanced.execute(noise, guides, samplers(sampler), levels(schedule, t.model.patcher), latent)
        )
        brush = cell_renderer.CellRenderer(t.model, t.text, t.codec, sampling())
        return np.asarray(brush._pictures(found["samples"], 1)[0], dtype=int)


def wired(t, wires, prompt: str = "another prompt altogether") -> host.Wired:
    """As a graph gives them: made with the node's model, and prompts that the grid's take the places of."""
    sampler, schedule, guider = wires
    with torch.inference_mode():
        guides = guiders(guider, t.model.patcher, t.text.for_sampling, prompt, "nothing")
        return host.Wired(samplers(sampler), levels(schedule, t.model.patcher), guides)


SETS = [
    ("sd15", ("euler", "ays", "cfg")), ("sd15", ("sde", "karras", "dual")), ("sd3", ("sde", "flux2", "basic")),
    ("sd3", ("dpmpp_2m", "flux2", "dual")), ("sd15", ("heun", "ays", "perpneg")),
]  # fmt: skip
WORTHLESS = {"sampler": "lcm", "scheduler": "simple", "steps": 77, "cfg": 11.0}


@pytest.mark.parametrize(("name", "wires"), SETS)
def test_cells_are_those_of_the_stock_nodes(tiny, tmp_path, name, wires):
    """Bit for bit without a LoRA and where the host merges it; the widgets that the wires replace do not count."""
    t = tiny(name)
    path = write_lora(t, tmp_path / "ink.safetensors")
    given = wired(t, wires)
    before, state = hooks(t), snapshot(given.guider)
    grid = drawn(grid_of(t, tmp_path, path, strengths=(1.0, -0.7), how={**WORTHLESS, "negative": NEGATIVE}, wired=given))
    assert grid.together == (1 if "perpneg" in wires else 2)
    assert np.array_equal(pixels(grid, 0, (0, 0)), stock(t, None, wires))
    for row, strength in enumerate((1.0, -0.7)):
        expected = stock(t, path, strength=strength, wires=wires)
        assert alike(pixels(grid, 0, (1, row)), expected), strength
        assert np.abs(pixels(grid, 0, (0, 0)) - expected).max() > 4
    with torch.inference_mode():
        model, _ = t.model.with_lora(t.text.clip, files.read_tensors(path, "look"), 1.0)
        merged = grid.brush.merged(host.Model(model), t.text, plan.Page("a fox", 3))
    assert np.array_equal(np.asarray(merged, dtype=int), stock(t, path, wires))
    assert hooks(t) == before
    assert snapshot(given.guider) == state


def snapshot(guider):
    """All that is in a guider: what it refers to, and its conditionings' numbers."""
    conds = {k: [{n: v.tolist() if hasattr(v, "tolist") else v for n, v in e.items()} for e in es]
             for k, es in guider.original_conds.items()}  # fmt: skip
    return {k: id(v) for k, v in vars(guider).items() if k != "original_conds"}, id(guider.original_conds), repr(conds)


def test_without_a_wire_the_widgets_count(tiny, tmp_path):
    """A sampler alone takes the scheduler's levels; a guider alone those of sampler and scheduler; levels alone both others."""
    t = tiny("sd15")
    whole = wired(t, ("euler", "karras", "cfg"))
    how = {"sampler": "euler", "scheduler": "karras", "steps": 3, "cfg": 3.5, "negative": NEGATIVE}
    expected = stock(t, None, ("euler", "karras", "cfg"))
    for some in (host.Wired(sampler=whole.sampler), host.Wired(sigmas=whole.sigmas), host.Wired(guider=whole.guider)):
        path = write_lora(t, tmp_path / "ink.safetensors")
        grid = drawn(grid_of(t, tmp_path / some.identity(), path, strengths=(1.0,), how=how, wired=some))
        assert np.array_equal(pixels(grid, 0, (0, 0)), expected)


def test_what_is_laid_on_the_guiders_prompt_stays_and_its_text_goes(tiny, tmp_path):
    """As Flux's guidance does; here a range of steps in which the prompt counts."""
    import node_helpers

    t = tiny("sd15")
    custom = nodes()[0]
    with torch.inference_mode():
        read = t.text.for_sampling
        late = lambda text: node_helpers.conditioning_set_values(read(text), {"start_percent": 0.5, "end_percent": 1.0})  # noqa: E731
        sampler, schedule = samplers("euler"), levels("ays", None)
        theirs = out(custom.CFGGuider.execute(t.model.patcher, late("a fox"), read(NEGATIVE), 3.5))
        mine = out(custom.CFGGuider.execute(t.model.patcher, late("other"), read("other"), 3.5))
        plain = out(custom.CFGGuider.execute(t.model.patcher, read("other"), read("other"), 3.5))
        noise, latent = out(custom.RandomNoise.execute(3)), {"samples": torch.zeros(1, 4, 8, 8)}
        found = out(custom.SamplerCustomAdvanced.execute(noise, theirs, sampler, schedule, latent))["samples"]
        brush = cell_renderer.CellRenderer(t.model, t.text, t.codec, sampling())
        expected = np.asarray(brush._pictures(found, 1)[0], dtype=int)
    path = write_lora(t, tmp_path / "ink.safetensors")
    first, other = (
        drawn(grid_of(t, tmp_path, path, strengths=(1.0,), how={"negative": NEGATIVE}, wired=host.Wired(sampler, schedule, one)))
        for one in (mine, plain)
    )
    assert np.array_equal(pixels(first, 0, (0, 0)), expected)
    assert not np.array_equal(pixels(other, 0, (0, 0)), expected)


def changed_sampler(w):
    return host.Wired(out(nodes()[0].SamplerDPMPP_SDE.execute(0.7, 0.9, 0.5, "cpu")), w.sigmas, w.guider)


def changed_sigmas(w):
    return host.Wired(w.sampler, w.sigmas * torch.tensor([1.0, 1.0, 1.0001, 1.0]), w.guider)


def changed_strength(w):
    guider = copy.copy(w.guider)
    guider.cfg1 = 3.1
    return host.Wired(w.sampler, w.sigmas, guider)


def changed_middle(w):
    """One number of the conditioning between both."""
    guider = copy.copy(w.guider)
    middle = dict(guider.original_conds["middle"][0])
    middle["cross_attn"] = middle["cross_attn"].clone()
    middle["cross_attn"][0, 5, 7] += 0.25
    guider.original_conds = {**guider.original_conds, "middle": [middle]}
    return host.Wired(w.sampler, w.sigmas, guider)


def laid_on(w):
    guider = copy.copy(w.guider)
    guider.original_conds = {**guider.original_conds, "positive": [{**guider.original_conds["positive"][0], "guidance": 2.5}]}
    return host.Wired(w.sampler, w.sigmas, guider)


def unwired(w):
    return host.Wired(w.sampler, w.sigmas)


@pytest.mark.parametrize("change", [changed_sampler, changed_sigmas, changed_strength, changed_middle, laid_on, unwired])
def test_a_cell_is_found_again_by_what_the_wires_hold(tiny, change):
    t = tiny("sd15")
    with torch.inference_mode():
        one, again = wired(t, ("sde", "ays", "dual"), "one text"), wired(t, ("sde", "ays", "dual"), "another text")
        assert one.identity() == again.identity() != ""
        assert change(one).identity() != one.identity()
    assert host.NOTHING_WIRED.identity() == ""


def test_known_cells_are_not_drawn_again_and_others_are(tiny, tmp_path, monkeypatch):
    t, asked = tiny("sd15"), []
    path = write_lora(t, tmp_path / "ink.safetensors")
    real = type(t.model).sample
    monkeypatch.setattr(type(t.model), "sample", lambda self, *a, **k: asked.append(1) or real(self, *a, **k))

    def count(given, **how):
        asked.clear()
        drawn(grid_of(t, tmp_path, path, strengths=(1.0,), how=how, wired=given))
        return len(asked)

    first = wired(t, ("sde", "ays", "dual"))
    assert count(first) == 2 and count(wired(t, ("sde", "ays", "dual"), "other text")) == 0
    assert count(first, **WORTHLESS) == 0  # none of these counts
    assert count(changed_sampler(first)) == 2 and count(host.NOTHING_WIRED) == 2 and count(host.Wired(sampler=first.sampler)) == 2


def test_what_cannot_be_told_apart_is_never_found_again(tiny):
    class Odd:
        def __init__(self):
            self.table = np.arange(3)  # holds its numbers out of sight

        def sample(self):
            pass

    odd = host.Wired(Odd())
    assert odd.identity() != odd.identity() and not odd.draws_batches


def test_what_the_wires_bring_is_told_on_the_page_and_in_the_files(tiny, tmp_path):
    t = tiny("sd15")
    path = write_lora(t, tmp_path / "ink.safetensors")
    grid = drawn(grid_of(t, tmp_path, path, strengths=(1.0,), how=WORTHLESS, wired=wired(t, ("sde", "ays", "basic"))))
    assert grid.book.sampling.sampler == "dpmpp_sde (eta 0.7, s_noise 0.9, r 0.4) through BasicGuider"
    assert (grid.book.sampling.scheduler, grid.book.sampling.steps, grid.book.sampling.cfg) == ("sigmas 14.61 to 0", 3, 1.0)
    told = (
        "sampler, sigmas, guider: they came through their wires, so sampler_name, scheduler, steps, cfg, negative are not used."
    )
    assert told in grid.notes() and told in grid.statement().notes and not grid.statement().warnings
    cell = grid.book.cells[0][(0, 0)]
    stated = json.loads(Image.open(cell).text["lora_atelier.cell"])
    assert (stated["scheduler"], stated["steps"]) == ("sigmas 14.61 to 0", 3)
    assert all(page.is_file() for page in grid.save_pages())


def broken(t, kind):
    with torch.inference_mode():
        given = wired(t, ("euler", "ays", "cfg"))
        guider = copy.copy(given.guider)
        if kind == "parts":
            guider.original_conds = {**guider.original_conds, "positive": guider.original_conds["positive"] * 2}
        if kind == "no prompt":
            guider.original_conds = {"negative": guider.original_conds["negative"]}
        if kind == "hooks":
            guider.original_conds = {**guider.original_conds, "negative": [{"hooks": object()}]}
        if kind == "second":
            guider.uncond_model_patcher = t.model.patcher
    return host.Wired(guider=guider)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda t: host.Wired(sigmas=torch.tensor([])), "sigmas: 0 levels came through"),
        (lambda t: host.Wired(sigmas=torch.tensor([1.0])), "sigmas: 1 level came through"),
        (lambda t: host.Wired(sigmas=torch.tensor([1.0, float("nan"), 0.0])), "sigmas: they hold NaN"),
        (lambda t: host.Wired(sigmas=torch.tensor([0.0, 7.0, 14.0])), "sigmas: they go from 0 to 14"),
        (lambda t: host.Wired(sigmas=torch.tensor([14.0, 3.0, 5.0, 0.0])), "do not fall"),
        (lambda t: host.Wired(sigmas=torch.zeros(4)), "do not fall"),
        (lambda t: host.Wired(sigmas=torch.ones(2, 4)), "no row of noise levels"),
        (lambda t: host.Wired(sampler="euler"), "which is no SAMPLER"),
        (lambda t: host.Wired(guider="cfg"), "guider: a str came"),
        (lambda t: broken(t, "parts"), "consists of 2 parts"),
        (lambda t: broken(t, "no prompt"), "CFGGuider has no positive"),
        (lambda t: broken(t, "hooks"), "hooks lie on"),
        (lambda t: broken(t, "second"), "draws with a second model"),
    ],
)
def test_what_cannot_be_drawn_with_is_a_sentence(tiny, tmp_path, given, said):
    t = tiny("sd15")
    path = write_lora(t, tmp_path / "ink.safetensors")
    with pytest.raises(AtelierError, match=said):
        grid_of(t, tmp_path, path, wired=given(t))


def test_a_guider_of_another_model(tiny, tmp_path):
    """Of another file: refused. Of the same with something else laid on it: said. The file loaded a second time: the same."""
    import comfy.sd

    from ...tiny_models import cached

    t, other = tiny("sd15"), tiny("sd3")
    path = write_lora(t, tmp_path / "ink.safetensors")
    with pytest.raises(AtelierError, match=r"its model \(SD3\) is another one .* \(SD15\)"):
        grid_of(t, tmp_path, path, wired=host.Wired(guider=wired(other, ("euler", "flux2", "cfg")).guider))
    custom = nodes()[0]
    with torch.inference_mode():
        laid = t.model.with_lora(None, files.read_tensors(path, "look"), 1.0)[0]
        guider = out(custom.BasicGuider.execute(laid, t.text.for_sampling("x")))
        grid = grid_of(t, tmp_path, path, wired=host.Wired(guider=guider))
        assert any("have laid something else on its model" in one for one in grid.remarks())
        twice, *_ = comfy.sd.load_checkpoint_guess_config(str(cached("sd15")), output_vae=False, output_clip=False)
        guider = out(custom.BasicGuider.execute(twice, t.text.for_sampling("x")))
        again = host.Wired(guider=guider)
        again.check(t.model)
        assert again.remarks(t.model) == []
    same = wired(t, ("euler", "ays", "cfg"))
    assert same.remarks(t.model) == []


def test_schedules_that_leave_noise_or_begin_late_are_said(tiny):
    t = tiny("sd15")
    late, early = (host.Wired(sigmas=torch.tensor(one)) for one in ([5.0, 1.0, 0.0], [14.6, 5.0, 3.0]))
    assert ["begin at 5" in one for one in late.remarks(t.model)] == [True]
    assert ["end at 3" in one for one in early.remarks(t.model)] == [True]


def test_a_cancel_reaches_the_sampler(tiny, tmp_path, monkeypatch):
    """Between two steps, as in the stock node; what was drawn is kept."""
    import comfy.model_management as management

    t, steps = tiny("sd15"), []
    path = write_lora(t, tmp_path / "ink.safetensors")

    def check():
        steps.append(1)
        if len(steps) == 2:
            raise management.InterruptProcessingException

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", check)
    with pytest.raises(management.InterruptProcessingException):
        drawn(grid_of(t, tmp_path, path, wired=wired(t, ("euler", "ays", "cfg"))))
    assert len(steps) == 2
