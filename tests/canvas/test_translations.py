"""The translations of the panels, nodes and help pages: nothing of the English is missing in them, and nothing is left over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.canvas.test_words import node_kinds

LANGUAGES = ("zh", "ja")
HELP = (
    "LoadDataset",
    "DatasetFromNodes",
    "AutoCaption",
    "RenderRegularisation",
    "SliderDataset",
    "ConfigureLoRA",
    "TrainLoRA",
    "EpochWeightGrid",
)
SCRIPTS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]"}
SAME_EVERYWHERE = re.compile(r"^[\s\d\W]*(\[\w+\][\s\d\W]*)*$|^(LoRA|Load Image|ComfyUI|OK)$")
"""What is numbers, signs and names in every language."""


def words(root: Path, language: str, file: str) -> dict[str, Any]:
    return json.loads((root / "locales" / language / file).read_text(encoding="utf-8"))


def english_nodes(root: Path) -> dict[str, Any]:
    """What can be translated of the nodes, as ``nodeDefs.json`` names it: inputs by name, outputs by place."""
    listed = words(root, "en", "nodeDefs.json")
    for kind in node_kinds():
        schema = kind.define_schema()
        inputs, outputs = {}, {}
        for one in schema.inputs:
            inputs[one.id] = {"name": one.id, **({"tooltip": one.tooltip} if one.tooltip else {})}
        for place, one in enumerate(schema.outputs):
            outputs[str(place)] = {"name": one.display_name or one.id, **({"tooltip": one.tooltip} if one.tooltip else {})}
        listed[schema.node_id] |= {"inputs": inputs, "outputs": outputs}
    return listed


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    if isinstance(value, str):
        return {path: value}
    return {where: text for key, inner in value.items() for where, text in leaves(inner, (*path, key)).items()}


def same(language: str, english: dict[tuple[str, ...], str], translated: dict[tuple[str, ...], str]) -> None:
    assert not english.keys() - translated.keys(), "not translated"
    assert not translated.keys() - english.keys(), "left over from what is no longer said"
    for where, text in translated.items():
        assert sorted(re.findall(r"\[\w+\]", text)) == sorted(re.findall(r"\[\w+\]", english[where])), f"{where}: {text}"
        if not SAME_EVERYWHERE.match(english[where]):
            assert re.search(SCRIPTS[language], text), f"{where} is still English: {text}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_of_the_panels_is_translated(root: Path, language: str) -> None:
    english, translated = (leaves(words(root, one, "main.json")) for one in ("en", language))
    same(language, english, translated)
    assert not [text for text in translated.values() if re.search(r"[{}@|]", text)], "signs of the host's translator"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_of_the_nodes_is_translated(root: Path, language: str, comfyui: Path) -> None:
    english, translated = leaves(english_nodes(root)), leaves(words(root, language, "nodeDefs.json"))
    same(language, english, translated)
    assert not [text for text in translated.values() if re.search(r"[{}@|]", text)], "signs of the host's translator"
    # The host's own node is called the same in every language.
    assert "Atelier" in english["TrainLoRA", "display_name"] and "Atelier" in translated["TrainLoRA", "display_name"]
    for where, text in translated.items():
        if where[1] == "inputs" and where[-1] == "name":  # messages call the widget by the name that workflows store
            assert where[2] in text, f"{where}: {text}"


def skeleton(page: str) -> dict[str, Any]:
    """What a help page has in every language: headings, tables, pictures, links and what is written as code."""
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return {
        "headings": [len(mark) for mark in re.findall(r"^(#+) ", prose, flags=re.MULTILINE)],
        "rows": len(re.findall(r"^\|", prose, flags=re.MULTILINE)),
        "pictures": re.findall(r"!\[[^]]*\]\(([^)]*)\)", prose),
        "blocks": re.findall(r"```.*?```", page, flags=re.DOTALL),
        "links": sorted({link.split("#")[0] for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)]*)\)", prose)}),
        "code": sorted(set(re.findall(r"`([^`]+)`", prose))),
    }


@pytest.mark.parametrize("node", HELP)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_help_pages_are_translated_whole(root: Path, language: str, node: str) -> None:
    docs = root / "js" / "docs"
    english, translated = ((docs / name).read_text(encoding="utf-8") for name in (f"{node}.md", f"{node}/{language}.md"))
    assert skeleton(translated) == skeleton(english)
    assert len(re.findall(SCRIPTS[language], translated)) > len(english.split()) / 2, "much is still English"
