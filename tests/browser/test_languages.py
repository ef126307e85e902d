"""The page in Chinese and in Japanese: nodes, widgets, panels and help pages speak it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lora_atelier.tests.browser.driver import browser, drive, look, ours
from lora_atelier.tests.canvas.test_translations import SCRIPTS
from lora_atelier.tests.host import support

KINDS = ["LoadDataset", "ConfigureLoRA", "TrainLoRA"]


@pytest.mark.parametrize(("language", "vue"), [("zh", False), ("ja", True)])
def test_a_page_in_another_language(language: str, vue: bool, comfyui: object, tmp_path: Path) -> None:
    browser()
    host = support.host("new")
    seen = drive("speak", host, tmp_path, kinds=KINDS, language=language, settings={"Comfy.Locale": language}, **look(vue))
    words = json.loads((support.ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for node in seen["nodes"]:
        own = words[node["kind"]]
        assert node["title"] == own["display_name"]
        named = {name: label for name, label in node["labels"].items() if name in own["inputs"]}
        assert named and all(label == own["inputs"][name]["name"] for name, label in named.items())
    assert all(re.search(SCRIPTS[language], text) for text in seen["panels"]), seen["panels"]
    assert all(isinstance(line, str) and re.search(SCRIPTS[language], line) for line in seen["help"]), seen["help"]
    assert not ours(seen)
