"""The arguments of ``studio.py``. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

COMMANDS = ("demo", "train", "serve", "test", "check", "bench", "setup", "workflows")
TAKES_MORE = ("test", "bench")  # whatever else they are given is for the program behind them


def arguments_of(line: Sequence[str] | None, description: str | None) -> tuple[argparse.Namespace, list[str]]:
    """What was asked for (of the process if ``line`` is None), and the rest; argparse ends the process where that is unknown."""
    parser = argparse.ArgumentParser(
        prog="studio.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("--comfyui", metavar="PATH", help="a ComfyUI that is already there")
        if name == "bench":
            command.add_argument("name", metavar="NAME")
        if name == "train":
            _add_training(command)
        if name in ("demo", "train"):
            command.add_argument("--json", action="store_true", help="end with one line of JSON")
        if name == "test":
            command.add_argument("--gpu", action="store_true", help="on the NVIDIA GPU that is there, else on a pretended one")
        if name == "serve":
            command.add_argument("--port", type=int, default=8188)
    known, rest = parser.parse_known_args(line)
    if rest and known.command not in TAKES_MORE:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return known, rest


def _add_training(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("workflow", metavar="WORKFLOW.json", type=Path, help="as the canvas saves it, or exports it (API)")
    add(
        "--set", metavar="NODE.WIDGET=VALUE", action="append", default=[], dest="settings",
        help="another value for a widget; NODE is a node's type, id or title",
    )  # fmt: skip
    add("--processes", type=int, default=1, metavar="N", help="processes on each machine, a GPU each")
    add("--nodes", type=int, default=1, metavar="M", help="on so many machines, which all run this")
    add("--rendezvous", default="", metavar="HOST:PORT", help="where the machines meet: a port of one of them")
    add("--shard", action="store_true", help="each process holds a part of the model, for models larger than a card")
    add("--everything", action="store_true", help="run every node, not only those before the training and grid")
