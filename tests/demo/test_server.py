"""The parts of the server's driver that need no server; ``tests/host`` starts real ones with it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from lora_atelier.demo import run
from lora_atelier.demo.server import BASE_FOLDERS, Server, ServerError, error_of, free_port, link_folder, make_base


def test_a_base_keeps_what_is_there_and_links_the_pack(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    base = make_base(tmp_path / "base", pack)
    (base / "input" / "mine.png").write_text("mine")
    make_base(base, pack)
    assert (base / "input" / "mine.png").read_text() == "mine"
    assert all((base / name).is_dir() for name in BASE_FOLDERS)
    assert (base / "custom_nodes" / "lora-atelier").resolve() == pack.resolve()


def test_a_link_follows_a_repository_that_was_moved(tmp_path: Path) -> None:
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    old.mkdir()
    link_folder(old, link)
    old.rename(new)
    link_folder(new, link)
    assert link.resolve() == new.resolve()


def test_a_folder_in_the_place_of_the_link_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "link").mkdir()
    with pytest.raises(FileExistsError, match="is in the way"):
        link_folder(tmp_path / "pack", tmp_path / "link")


def test_what_the_history_says_becomes_one_line() -> None:
    failed = {"node_type": "TrainLoRA", "node_id": "7", "exception_type": "AtelierError", "exception_message": "No pictures.\n"}
    assert error_of({"status": {"status_str": "success", "messages": [["execution_start", {}]]}}) is None
    assert (
        error_of({"status": {"status_str": "error", "messages": [["execution_error", failed]]}})
        == "TrainLoRA (node 7): AtelierError: No pictures."
    )
    stopped = {"node_type": "TrainLoRA", "node_id": "7"}
    assert error_of({"status": {"status_str": "error", "messages": [["execution_interrupted", stopped]]}}) == (
        "interrupted in TrainLoRA (node 7)"
    )
    assert "without success" in str(error_of({}))


def test_pictures_are_found_on_disk_by_node(tmp_path: Path) -> None:
    server = Server(sys.executable, tmp_path, tmp_path / "base", cpu=True)
    saved = {"filename": "grid_00001_.png", "subfolder": "atelier", "type": "output"}
    preview = {"filename": "thumb.png", "subfolder": "", "type": "temp"}
    entry = {"outputs": {"1": {"images": [preview]}, "5": {"images": [saved]}, "6": {"text": ["x"]}}}
    base = tmp_path / "base"
    assert server.pictures(entry, "5") == [base / "output" / "atelier" / "grid_00001_.png"]
    assert server.pictures(entry) == [base / "temp" / "thumb.png", base / "output" / "atelier" / "grid_00001_.png"]
    assert server.pictures(entry, "6") == []


def test_a_server_that_dies_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "cli_args.py").touch()
    (tmp_path / "main.py").write_text("raise SystemExit('no module named aiohttp')")
    server = Server(sys.executable, tmp_path, make_base(tmp_path / "base"), cpu=True)
    with pytest.raises(ServerError, match=r"ended with code 1(.|\n)*no module named aiohttp"):
        server.start()
    assert server.process is not None
    assert server.process.poll() == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no interrupt for one process")
def test_a_server_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "cli_args.py").touch()
    (tmp_path / "main.py").write_text("import time; time.sleep(600)")
    server = Server(sys.executable, tmp_path, make_base(tmp_path / "base"), cpu=True)
    with pytest.raises(ServerError, match="did not answer within 1 s"):
        server.start(timeout=1)
    assert server.process is not None
    assert server.process.poll() is not None


def test_only_arguments_that_the_host_knows_are_given(tmp_path: Path, comfyui: Path, comfyui_old: Path) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "cli_args.py").touch()
    ancient = Server(sys.executable, tmp_path, tmp_path / "base", cpu=True).command()
    assert "--database-url" not in ancient
    assert "--disable-api-nodes" not in ancient
    for host in (comfyui, comfyui_old):
        line = Server(sys.executable, host, tmp_path / "base", cpu=True).command()
        assert {"--database-url", "--disable-api-nodes", "--base-directory", "--cpu"} <= set(line)
    assert "--base-directory" not in Server(sys.executable, comfyui, comfyui, cpu=False).command()


def test_a_taken_port_is_exchanged_for_a_free_one() -> None:
    said: list[str] = []
    free = free_port()
    assert run.port_or_free(free, said.append) == free
    assert said == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free))
        taken.listen()
        assert run.port_or_free(free, said.append) != free
    assert str(free) in said[0]


def test_progress_says_each_line_once_and_without_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LINE_EVERY", 0.0)
    server = Server(sys.executable, tmp_path, make_base(tmp_path / "base"), cpu=True)
    server.log_file.write_text("from the start\n")
    said: list[str] = []
    progress = run.Progress(server, said.append)
    with server.log_file.open("a") as log:
        log.write("\x1b[32m[INFO]\x1b[0m ink: step 1/6\n\n")
    progress.tick()
    progress.tick()
    with server.log_file.open("a") as log:
        log.write("  0%|   | 0/1\r100%|###| 1/1")
    progress.tick()
    assert [line.split(" s  ")[1] for line in said] == ["ink: step 1/6", "100%|###| 1/1"]
