"""A workflow file trained without a server: the same files, numbers and resumption as through the canvas."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_atelier.demo.server import Server
from lora_atelier.tests.host import support
from lora_atelier.tests.host.test_stopping import assert_no_step_is_missing, endless, history, wait_for
from safetensors.torch import load_file

RUN = """
import json, sys
from pathlib import Path
from types import ModuleType
package = ModuleType("lora_atelier")
package.__path__ = [sys.argv[1]]
sys.modules["lora_atelier"] = package
from lora_atelier.demo import train
from lora_atelier.demo.server import Server
python, comfyui, base, workflow, settings = json.loads(sys.argv[2])
machines = train.Machines(int(sys.argv[3]), shard=sys.argv[4] == "1")
sys.exit(train.train(Server(python, Path(comfyui), Path(base), cpu=True), Path(workflow), settings, False, True, machines))
"""


def begin(host: support.Host, file: Path, *settings: str, processes: int = 1, shard: bool = False) -> subprocess.Popen[str]:
    """``studio.py train`` as far as it is not set-up."""
    own: Server = host.server
    told = json.dumps([own.python, str(own.comfyui), str(own.base), str(file), settings])
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(support.ROOT), told, str(processes), str(int(shard))], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, dict[str, Any]]:
    said, _ = process.communicate(timeout=300)
    lines = [line for line in said.splitlines() if line.startswith('{"success"')]
    return process.returncode, said, json.loads(lines[-1]) if lines else {}


def exported(prompt: dict[str, Any], folder: Path) -> Path:
    file = folder / "graph.json"
    file.write_text(json.dumps(prompt), encoding="utf-8")
    return file


def test_a_graph_gives_the_files_that_the_server_gives(host: support.Host, tmp_path: Path) -> None:
    graph = host.graph()
    nodes = support.build_atelier(graph, "sd3", "by-server", TrainLoRA={"preview_steps": 1})
    entry = host.run(graph)
    (page, *_) = host.server.pictures(entry, nodes.grid)
    file = exported(graph.prompt, tmp_path)
    code, said, result = ended(begin(host, file, "ConfigureLoRA.name=by-command", f"{nodes.grid}.steps=1"))
    assert code == 0, said
    assert result["success"] and result["loras"] and result["grids"]
    for path in map(Path, result["loras"]):
        theirs = load_file(path.parents[1] / "by-server" / path.name.replace("by-command", "by-server"))
        own = load_file(path)
        assert own.keys() == theirs.keys() and all(own[key].equal(theirs[key]) for key in own)
    assert all(Path(path).is_file() for path in result["grids"]) and page.is_file()
    assert "step 1/" in said or "epoch 1/" in said
    assert "| --- |" not in said and "Traceback" not in said


def test_a_signal_keeps_what_was_learnt_and_the_command_goes_on(host: support.Host, tmp_path: Path) -> None:
    name = "by-command-stopped"
    graph, _ = endless(host, name, save_every=400)
    file = exported({"prompt": graph.prompt}, tmp_path)
    process = begin(host, file)
    wait_for(lambda: len(history(host, name)) >= 5)
    process.send_signal(signal.SIGTERM)
    code, said, result = ended(process)
    assert code == 130 and not result["success"], said
    stopped = len(history(host, name))
    (moment,) = (host.loras / "lora-atelier" / name).glob("*.safetensors")
    assert str(stopped) in moment.stem
    longer = f"ConfigureLoRA.max_steps={stopped + 2}", "TrainLoRA.when_interrupted=continue with the changes"
    code, said, result = ended(begin(host, file, *longer))
    assert code == 0, said
    assert len(history(host, name)) == stopped + 2
    assert_no_step_is_missing(host, name)


def test_what_the_host_refuses_is_said_in_its_words(host: support.Host, tmp_path: Path) -> None:
    graph = host.graph()
    support.build_atelier(graph, "sd3", "by-command-wrong")
    file = exported(graph.prompt, tmp_path)
    code, said, result = ended(begin(host, file, "EpochWeightGrid.which_epochs=soon", "LoadDataset.resolution=1"))
    assert code == 1 and not result["success"]
    assert "EpochWeightGrid" in result["error"] and "LoadDataset" in result["error"], said
    assert "(node 6): which_epochs: 'soon'" in result["error"] and "Custom validation failed" not in result["error"], said
    assert not (host.loras / "lora-atelier" / "by-command-wrong").exists()


def test_two_processes_train_what_one_trains_and_a_signal_keeps_it(host: support.Host, tmp_path: Path) -> None:
    """PyTorch's launcher starts them; captions, samples and the grid are the first one's."""
    graph = host.graph()
    support.build_atelier(graph, "sd3", "by-two", TrainLoRA={"preview_steps": 1})
    file = exported(graph.prompt, tmp_path)
    one = begin(host, file, "ConfigureLoRA.name=by-one", "ConfigureLoRA.accumulate=2", "ConfigureLoRA.save_precision=fp32")
    code, said, alone = ended(one)
    assert code == 0, said
    code, said, together = ended(begin(host, file, "ConfigureLoRA.save_precision=fp32", processes=2))
    assert code == 0, said
    assert len(together["loras"]) == len(alone["loras"]) > 0 and together["grids"]
    for theirs, own in zip(alone["loras"], together["loras"], strict=True):
        expected, found = load_file(theirs), load_file(own)
        for key in expected:
            assert (found[key].float() - expected[key].float()).norm() <= 2e-3 * expected[key].float().norm() + 1e-6, key
    name = "by-two-stopped"
    graph, _ = endless(host, name, save_every=400)
    process = begin(host, exported(graph.prompt, tmp_path), processes=2)
    wait_for(lambda: len(history(host, name)) >= 4)
    process.send_signal(signal.SIGTERM)
    code, said, _ = ended(process)
    assert code == 130, said
    assert len(list((host.loras / "lora-atelier" / name).glob("*.safetensors"))) == 1
    assert_no_step_is_missing(host, name)


def test_several_trainings_take_turns_in_two_processes(host: support.Host, tmp_path: Path) -> None:
    graph = host.graph()
    nodes = support.build_atelier(graph, "sd3", "turns-first", TrainLoRA={"preview_steps": 0})
    common = {"name": "turns-second", "rank": 4, "alpha": 4.0, "epochs": 1, "learning_rate": 1e-2, "schedule": "constant"}
    config = graph.add("ConfigureLoRA", **common)
    links = {name: getattr(nodes, name) for name in ("model", "clip", "vae")}
    graph.add("TrainLoRA", **links, dataset=graph.out(nodes.caption), config=graph.out(config), preview_steps=0)
    code, said, result = ended(begin(host, exported(graph.prompt, tmp_path), processes=2))
    assert code == 0, said
    assert {Path(path).parent.name for path in result["loras"]} == {"turns-first", "turns-second"} and result["grids"]
    assert len(history(host, "turns-second")) * 2 == len(history(host, "turns-first"))


def test_two_processes_that_hold_a_part_of_the_model_each_are_stopped_by_a_signal(host: support.Host, tmp_path: Path) -> None:
    name = "by-parts-stopped"
    graph, _ = endless(host, name, save_every=400)
    file = exported(graph.prompt, tmp_path)
    process = begin(host, file, processes=2, shard=True)
    wait_for(lambda: len(history(host, name)) >= 4)
    process.send_signal(signal.SIGTERM)
    code, said, _ = ended(process)
    assert code == 130 and "--shard: each of the 2 processes holds" in said, said
    assert len(list((host.loras / "lora-atelier" / name).glob("*.safetensors"))) == 1
    assert_no_step_is_missing(host, name)
    code, said, result = ended(begin(host, file, "ConfigureLoRA.compile=true", processes=2, shard=True))
    assert code == 1 and "--set ConfigureLoRA.compile=false" in result["error"], said
