"""Writes docs/models.md from the zoo's tests, run on every host that is there: ``python tests/zoo/report.py [host ...]``.

With ``--quantised`` before the hosts only the tests of quantised weights are run, and only their section is written anew.

Nothing in the tables is written by hand: what works is what passed, what is refused says so itself, and a family that the host
knows and the zoo does not stands there as not built yet.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOSTS = ROOT / ".studio" / "hosts"
INTRO = """\
# Models

Written by `python tests/zoo/report.py` from the tests in `tests/zoo`, on {hosts}; not by hand.

Of every family a tiny model with random weights is made by ComfyUI's own classes. A family *works* where all of this holds:
every trained layer has a gradient, which is the slope of the loss by finite differences (1e-3); it is the same with gradient
checkpointing and for two pictures of different captions at once (1e-4); 20 steps lower the loss; the saved file goes into the
stock LoRA loader without a key left over and draws what the adapter drew in training; and afterwards the model draws the very
picture that it drew before. Models of films are tried on pictures, and for the gradient on three frames of the latent, too. All
on a CPU in float32: sizes, speed and what a published model learns are not judged here.

- **noise**: what `noise levels: auto` takes. *by size* is a shift that grows with the picture.
- **file**: whether ComfyUI's loader recognised the tiny model as a file; where it insists on the published width, the model was
  made from its class.
- **needs**: what would go wrong without LoRA Atelier's care: tensors that blocks *change in place*, or a *kernel without a
  backward* pass.
"""
READS = "test_a_text_encoder_learns"
TEXTS = """
## Text encoders

What reads the captions, in brackets whose. One *works* with `text_encoder: all` where its gradient is the slope of what it
says by finite differences (2e-3), with recomputed blocks too, its file goes into the stock LoRA loader and reads the same
there, and what is kept of a caption (pooled vector, masks and every further tensor) is to the bit what a graph would give.
All that were tried can be trained; whether there is memory for one of billions of numbers, the run says before its first
step. *Layers*: those that learn; in the others nothing can be learnt, since they are not read. Banks of experts (GPT-OSS) are
not trained, and Mistral's encoders were tried with another vocabulary.
"""
ELSEWHERE = "test_a_lora_means_the_same_in_diffusers_and_here"
DIFFUSERS = """
## In diffusers

The same random weights in ComfyUI and in diffusers, and a LoRA with the default targets. *There*: its file, by the pipeline's
`load_lora_weights`, changes the network's answer as the adapter does here (2e-3). *Back*: what `save_lora_weights` makes of it is
read here and does the same. diffusers does not read kohya's names of SD 3, so there the names are changed first; ComfyUI does not
know diffusers' names of Wan.

| model | there | back |
| --- | --- | --- |
"""
QUANTISED = "## Quantised weights"
PACKED = """
The formats in which ComfyUI loads weights, tried on tiny models whose blocks are stored in them: {models}.
One *works* where all of this holds: the gradient of every parameter is that beside the weights that the file stands for, in
float32 ({near}), with recomputed blocks, with blocks that come from main memory,
where the host would multiply as on a GPU, and for DoRA, LoKr and LoHa; it learns; autograd keeps no unpacked weight; the model
draws the same afterwards, to the bit; and the saved file goes into the stock LoRA loader and draws what the adapter drew, but for
what that loader rounds. SDXL, the deepest, is asked for its gradient alone, in two formats. Training multiplies with the unpacked
weights in the precision of the run; only what is sampled is computed in the format itself.

- **gradient**: its distance, of the parameter where it is largest, computed in float32; **in bf16**: of the whole gradient, which
  is bf16's own rounding.
- **sampling**: how far a picture of two steps is from one by the unpacked weights where ComfyUI multiplies in the format (fp8 as
  on a GPU): what training does without. The products of nvfp4 and mxfp8 run on a GPU only.
- **LoRA loader**: the stock loader packs weights anew with the LoRA in them, rounding at random: the share of the LoRA's effect
  that this changes, for one that changes about a third of the picture. Of a LoRA of a tenth of that it is several times as much.
"""
REFUSED = """\
Refused before anything is encoded. Files of SVDQuant and AWQ are not read by these hosts' own loader (a `KeyError`); a layer
that is packed so was put into a loaded model."""


class Notes:
    """What the tests found, by model."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = re.search(r"::(test_\w+)\[(.+)\]$", report.nodeid)
        if found is None or (report.when != "call" and report.passed):
            return
        note = self.models.setdefault(found[2], {"tests": {}})
        note["tests"][found[1]] = report.outcome
        note.update(report.user_properties)
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            note.setdefault("why", str(crash.message if crash else report.longrepr).splitlines()[0][:160])


def collect(target: Path, tests: str = "") -> None:
    """Runs the zoo, or one file of its tests, in this process and writes what it found to ``target``."""
    notes = Notes()
    pytest.main([str(HERE / tests), "-q", "--all-models", "-p", "no:cacheprovider"], plugins=[notes])
    import comfy.supported_models
    from lora_atelier.training import families

    names = [kind.__name__ for kind in comfy.supported_models.models]
    known = {name: describe(families.family_named(name), families.BySize) for name in names}
    target.write_text(json.dumps({"models": notes.models, "families": known}), encoding="utf-8")


def describe(family: Any, by_size: type) -> dict[str, str]:
    shift = "by size" if isinstance(family.shift, by_size) else f"{family.shift:g}"
    noise = f"shifted, {shift}" if family.levels == "shifted" else family.levels
    guidance = f"; told guidance {family.guidance:g}" if family.guidance is not None else ""
    return {"noise": noise + guidance, "refused": family.refused, "known": "yes" if family.known else ""}


def found_on(host: Path, threads: int, tests: str = "") -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--collect", str(target), tests]
        environment = {**os.environ, "ATELIER_COMFYUI": str(host), "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return json.loads(target.read_text(encoding="utf-8"))


def verdict(note: dict[str, Any] | None) -> str:
    outcomes = {test: outcome for test, outcome in (note or {"tests": {}})["tests"].items() if test != ELSEWHERE}
    if note is None or not outcomes:
        return "not run"
    if set(outcomes.values()) == {"skipped"}:
        return "–"
    if "failed" in outcomes.values():
        return f"no: {note.get('why', '')}".replace("|", "/").replace("`", "'")
    return "refused" if any(name.startswith("test_what_cannot") for name in outcomes) else "works"


def page(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown of docs/models.md; ``found`` is by the host's name, the main one first."""
    from recipes import RECIPES

    hosts, main = list(found), next(iter(found.values()))
    lines = [INTRO.format(hosts=" and ".join(f"ComfyUI {name}" for name in hosts)), "## Tried", ""]
    lines.append(f"| model | family | {' | '.join(hosts)} | predicts | noise | layers | file | needs |")
    lines.append("| --- " * (7 + len(hosts)) + "|")
    for recipe in RECIPES:
        notes = [one["models"].get(recipe.name) for one in found.values()]
        note = next((n for n in notes if n and "prediction" in n), {})
        noise = main["families"].get(recipe.family, {}).get("noise", "") if note.get("prediction") == "flow" else "uniform"
        layers = f"{note['targets']}" + (f", {note['left_out']} left out" if note["left_out"] else "") if note else ""
        unaided = note.get("unaided", "right")
        cells = [
            recipe.name, f"`{recipe.family}`", *map(verdict, notes), note.get("prediction", ""), noise if note else "", layers,
            "yes" if note.get("loads") else "class" if note else "", "" if unaided == "right" else unaided,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [*TEXTS.split("\n"), f"| text encoder | {' | '.join(hosts)} | layers |", "| --- " * (2 + len(hosts)) + "|"]
    for name in [name for name, note in main["models"].items() if READS in note["tests"]]:
        notes = [one["models"].get(name) for one in found.values()]
        note = next((n for n in notes if n and "targets" in n), {})
        layers = f"{note['targets']}" + (f", {note['left_out']} left out" if note["left_out"] else "") if note else ""
        lines.append(f"| {name} | {' | '.join(map(verdict, notes))} | {layers} |")
    tried_there = {name: note for name, note in main["models"].items() if ELSEWHERE in note["tests"]}
    lines += DIFFUSERS.rstrip("\n").split("\n")
    for name, note in tried_there.items():
        works = "works" if note["tests"][ELSEWHERE] == "passed" else "no"
        lines.append(f"| {name} | {works} | {works if note.get('back') else '–'} |")
    lines += ["", *section(found), "## Not tried", "", f"The other families of ComfyUI {hosts[0]}.", ""]
    lines += ["| family | |", "| --- | --- |"]
    tried = {recipe.family for recipe in RECIPES}
    for name, family in main["families"].items():
        if name not in tried:
            lines.append(f"| `{name}` | {'refused: ' + family['refused'] if family['refused'] else 'not built yet'} |")
    return "\n".join(lines) + "\n"


def section(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines on quantised weights: a row for each format, the worst of the models that it was tried on."""
    main = next(iter(found.values()))["models"]
    tried = [note for note in main.values() if "format" in note]
    if not tried:
        return []
    limits = {note["model"]: f"{note['near']:.0e}".replace("e-0", "e-") for note in tried}
    near = ", ".join(f"{model} {limit}" for model, limit in limits.items())
    lines = [QUANTISED, *PACKED.format(models=", ".join(limits), near=near).split("\n")]
    lines.append(f"| format | {' | '.join(found)} | gradient | in bf16 | sampling | LoRA loader |")
    lines.append("| --- " * (5 + len(found)) + "|")
    for name in dict.fromkeys(note["format"] for note in tried):
        cells = [name, *(verdict(together(one["models"], f"{name} / ")) for one in found.values())]
        notes = [note for key, note in main.items() if key.startswith(f"{name} / ")]
        for what, form in (("distance", ".0e"), ("in_bf16", ".2%"), ("products", ".2%"), ("redrawn", ".0%")):
            numbers = [note[what] for note in notes if what in note]
            cells.append(format(max(numbers), form) if numbers else "")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", REFUSED, "", "| format | |", "| --- | --- |"]
    lines += [f"| {name} | {note['refused']} |" for name, note in main.items() if "refused" in note]
    return [*lines, ""]


def together(notes: dict[str, Any], beginning: str) -> dict[str, Any] | None:
    """As one: the notes whose names have this beginning."""
    some = {name: note for name, note in notes.items() if name.startswith(beginning)}
    tests = {f"{test} {name}": outcome for name, note in some.items() for test, outcome in note["tests"].items()}
    return {"tests": tests, "why": next((note["why"] for note in some.values() if "why" in note), "")} if some else None


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--collect"]:
        collect(Path(arguments[1]), *arguments[2:])
        return
    part = arguments[:1] == ["--quantised"]
    arguments = arguments[1:] if part else arguments
    target = ROOT / "docs" / "models.md"
    hosts = [Path(a).resolve() for a in arguments] or sorted(HOSTS.glob("comfyui-*"), key=version, reverse=True)
    with ThreadPoolExecutor() as pool:
        work = partial(found_on, threads=max(1, (os.cpu_count() or 1) // len(hosts)), tests="test_quantised.py" if part else "")
        found = dict(zip([host.name.removeprefix("comfyui-") for host in hosts], pool.map(work, hosts), strict=True))
    text = spliced(target.read_text(encoding="utf-8"), section(found)) if part else page(found)
    target.write_text(text, encoding="utf-8")


def spliced(text: str, lines: list[str]) -> str:
    """``text`` with these lines in place of the section on quantised weights, which stands before the last one."""
    last = text.index("## Not tried")
    first = text.index(QUANTISED) if QUANTISED in text else last
    return text[:first] + "\n".join([*lines, ""]) + text[last:]


def version(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.name))


if __name__ == "__main__":
    main(sys.argv[1:])
