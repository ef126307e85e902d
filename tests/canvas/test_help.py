"""The nodes' help pages, as the host shows them: pictures that are there, and no link that leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lora_atelier.tests.host.support import NODES
from PIL import Image


@pytest.mark.parametrize("node", NODES)
def test_a_help_page_has_a_picture_and_no_link_that_leads_nowhere(root: Path, node: str) -> None:
    """The host opens a link as one of the canvas' own page, so only whole addresses lead somewhere."""
    folder = root / "js" / "docs"
    page = (folder / f"{node}.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", page)
    assert pictures
    for _, name in pictures:
        with Image.open(folder / name) as picture:
            assert min(picture.size) >= 200
    assert not [link for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", page) if not link.startswith("https://")]
    assert all((root / name).is_file() for name in re.findall(r"`(docs/[\w-]+\.md)`", page))
