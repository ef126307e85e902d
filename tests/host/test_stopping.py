"""Training that is stopped half-way: by Cancel, and by a server that dies. Nothing that was learnt is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo.server import error_of
from lora_atelier.tests.host import support
from safetensors import safe_open

EPOCHS = 400  # far more than are trained before the test stops them


def endless(host: support.Host, name: str, epochs: int = EPOCHS, save_every: int = 2) -> tuple[support.Graph, support.Atelier]:
    """The path without the grid, so that TrainLoRA is the last node."""
    graph = host.graph()
    config = {"epochs": epochs, "save_every": save_every, "schedule": "constant"}
    nodes = support.build_atelier(graph, "sd3", name, ConfigureLoRA=config, TrainLoRA={"preview_steps": 0})
    del graph.prompt[nodes.grid]
    return graph, nodes


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.1)
    return found


def numbered(host: support.Host, name: str) -> list[Path]:
    return sorted((host.loras / "lora-atelier" / name).glob(f"{name}-0*.safetensors"))


def steps_of(path: Path) -> int:
    with safe_open(path, "pt") as file:
        assert all(file.get_tensor(key).isfinite().all() for key in file.keys())  # noqa: SIM118
        return int(file.metadata()["ss_steps"])


def history(host: support.Host, name: str) -> list[dict[str, Any]]:
    """The run's rows, a step each; none before its first."""
    path = host.base / "output" / "lora-atelier" / name / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def assert_no_step_is_missing(host: support.Host, name: str) -> None:
    """Nor was one trained twice."""
    steps = [row["step"] for row in history(host, name)]
    assert steps == list(range(1, len(steps) + 1))


def loads_in_stock_nodes(host: support.Host, path: Path) -> None:
    graph = host.graph()
    model, clip, vae = support.load_checkpoint(graph, "sd3")
    name = str(path.relative_to(host.loras))
    lora = graph.add("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0)
    support.add_sampling(graph, graph.out(lora, 0), graph.out(lora, 1), vae, "sd3", prefix="stopped")
    host.run(graph)


def test_cancel_keeps_the_moment_and_the_next_run_goes_on(host: support.Host) -> None:
    name = "cancelled"
    graph, _ = endless(host, name, save_every=EPOCHS)
    prompt_id = host.server.queue(graph.prompt)
    wait_for(lambda: len(history(host, name)) >= 5)
    host.server.interrupt()
    entry = host.server.wait(prompt_id, 60)
    assert "interrupted in TrainLoRA" in str(error_of(entry))

    (moment,) = (host.loras / "lora-atelier" / name).iterdir()
    stopped_at = steps_of(moment)
    assert stopped_at == len(history(host, name))
    assert str(stopped_at) in moment.stem
    loads_in_stock_nodes(host, moment)

    prompt_id = host.server.queue(graph.prompt)
    wait_for(lambda: len(history(host, name)) >= stopped_at + 5)
    host.server.interrupt()
    host.server.wait(prompt_id, 60)
    assert not (host.loras / "lora-atelier" / f"{name}-2").exists(), "it is the same run, not a new one beside it"
    assert_no_step_is_missing(host, name)


def test_a_cancelled_run_ends_like_one_that_was_not(comfyui: Path) -> None:
    """Stopped and continued, the last file holds the same numbers as the file of an uninterrupted run."""
    host, epochs = support.host("new"), 40
    graph, _ = endless(host, "halved", epochs)
    prompt_id = host.server.queue(graph.prompt)
    wait_for(lambda: numbered(host, "halved"))
    host.server.interrupt()
    host.server.wait(prompt_id, 60)
    last = host.loras / "lora-atelier" / "halved" / "halved.safetensors"
    assert not last.exists(), "it was stopped too late to test anything"
    host.run(graph)
    whole, _ = endless(host, "in-one-go", epochs)
    host.run(whole)

    def tensors(name: str) -> dict[str, Any]:
        with safe_open(host.loras / "lora-atelier" / name / f"{name}.safetensors", "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    halved, in_one_go = tensors("halved"), tensors("in-one-go")
    assert halved.keys() == in_one_go.keys()
    assert all((halved[key] == in_one_go[key]).all() for key in halved)


def test_killed_server_loses_no_saved_epoch(host: support.Host) -> None:
    name = "killed"
    graph, _ = endless(host, name)
    host.server.queue(graph.prompt)
    wait_for(lambda: len(numbered(host, name)) >= 2)
    host.server.kill()
    saved = numbered(host, name)
    assert [steps_of(path) for path in saved] == [4 * (i + 1) for i in range(len(saved))]

    host = support.host(host.name)
    loads_in_stock_nodes(host, saved[-1])
    prompt_id = host.server.queue(graph.prompt)
    wait_for(lambda: len(numbered(host, name)) >= len(saved) + 1)
    host.server.interrupt()
    host.server.wait(prompt_id, 60)
    assert all(path.exists() for path in saved)
    assert_no_step_is_missing(host, name)
    assert not (host.loras / "lora-atelier" / f"{name}-2").exists()


@pytest.fixture(autouse=True)
def quiet_afterwards(host: support.Host):
    """A test that fails half-way must not leave its training running for the next one."""
    yield
    if host.server.process is not None and host.server.process.poll() is None:
        host.server.post("/queue", {"clear": True})
        host.server.interrupt()
        wait_for(lambda: not host.server.get("/queue")["queue_running"], 60)
