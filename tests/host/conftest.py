"""One real server per host version, shared by the session's tests."""

from __future__ import annotations

import pytest
from lora_atelier.tests.host import support


@pytest.fixture(scope="session", params=["new", "old"])
def host_name(request: pytest.FixtureRequest) -> str:
    """``new``: the main host. ``old``: the oldest one that is supported. Tests run grouped by host."""
    path = support.COMFYUI[request.param]
    if not (path / "main.py").is_file():
        pytest.fail(f"no ComfyUI at {path}: run the tests with `python3 studio.py test`, which fetches it")
    return request.param


@pytest.fixture
def host(host_name: str, comfyui: object) -> support.Host:
    """The running server; a test may kill it, the next one gets it started again."""
    return support.host(host_name)
