"""Pictures of three shapes: models that cut a picture up, or are asked of several at once, have questions of unlike lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...noise_pictures import noise_picture


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate(((56, 56), (112, 56), (56, 84))):
        noise_picture(size, 60 + 20 * i, i).save(folder / f"{i}.png")
    return sorted(folder.iterdir())
