"""A ComfyUI server as a child process, driven through its HTTP API. Standard library only.

    base = make_base(Path("home"), pack=Path("."))
    with Server(python, comfyui, base) as server:
        entry = server.run(prompt)                  # queues, waits, raises when a node failed
        for picture in server.pictures(entry): ...

A base directory holds everything that a server reads and writes: ``models/``, ``input/``, ``output/``, ``temp/``, ``user/`` and
``custom_nodes/``. Models for a test come in by placing files under it. What the server prints is in ``server.log_file``.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

BASE_FOLDERS = ("models/checkpoints", "models/loras", "input", "output", "temp", "user", "custom_nodes")
PACK_NAME = "lora-atelier"
CPU_TORCH_AID = Path(__file__).resolve().parent / "cpu_torch_aid"
HAS_ACCELERATOR = (
    "import torch; xpu = getattr(torch, 'xpu', None); "
    "print(int(torch.cuda.is_available() or torch.backends.mps.is_available() or bool(xpu and xpu.is_available())))"
)
# What a copy of the pack needs, where neither a link nor a junction can be made.
PACK_PARTS = ("__init__.py", "pyproject.toml", "nodes", "training", "js", "locales", "workflows")


class ServerError(RuntimeError):
    """The server did not start, died, refused a prompt or failed in a node. The message says what it said."""

    def __init__(self, message: str, answer: dict[str, Any] | None = None):
        super().__init__(message)
        self.answer = answer or {}
        """The server's own words: ``{"error", "node_errors"}`` for a refused prompt, the history entry for a failed one."""


def link_folder(target: Path, link: Path, replace_link: bool = True) -> None:
    """Make ``link`` lead to the folder ``target``: a symlink, on Windows a junction, and failing that a fresh copy of the pack.

    What stands at ``link`` is replaced only if it is a copy made here, or (unless ``replace_link`` is False) a link.
    """
    mark = link / ".copied-by-studio"
    if link.exists() and link.resolve() == target.resolve():
        return
    if link.is_symlink() and (replace_link or not link.exists()):
        link.unlink()
    elif mark.is_file():
        shutil.rmtree(link)
    elif link.exists():
        raise FileExistsError(f"{link} is in the way: move it elsewhere, so that a link to {target} can be put there")
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(target.resolve(), target_is_directory=True)
        return
    except OSError:
        if os.name != "nt":
            raise
    made = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target.resolve())], capture_output=True)
    if made.returncode != 0:
        link.mkdir()
        for part in PACK_PARTS:
            copy: Callable[..., object] = shutil.copytree if (target / part).is_dir() else shutil.copy2
            if (target / part).exists():
                copy(target / part, link / part)
        mark.touch()


def make_base(base: Path, pack: Path | None = None) -> Path:
    """Create a base directory (whatever exists is kept) and link the pack into its ``custom_nodes``."""
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    if pack is not None:
        link_folder(pack, base / "custom_nodes" / PACK_NAME)
    return base


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def has_accelerator(python: str) -> bool:
    """Whether the torch of this Python sees a GPU; asked once a Python."""
    answer = subprocess.run([python, "-c", HAS_ACCELERATOR], capture_output=True, text=True)
    return answer.stdout.strip() == "1"


def error_of(entry: dict[str, Any]) -> str | None:
    """Why a history entry is not a success, in the server's words; None for a success."""
    status = entry.get("status") or {}
    for name, data in status.get("messages", []):
        if name == "execution_error":
            where = f"{data.get('node_type')} (node {data.get('node_id')})"
            return f"{where}: {data.get('exception_type')}: {str(data.get('exception_message', '')).strip()}"
        if name == "execution_interrupted":
            return f"interrupted in {data.get('node_type')} (node {data.get('node_id')})"
    return None if status.get("status_str") == "success" else f"ended without success: {status}"


class Server:
    """One ComfyUI process. Use as a context manager, or call ``start`` and ``stop``.

    ``python``: its interpreter. ``comfyui``: the folder with ``main.py``. ``base``: see ``make_base``; the ComfyUI folder itself
    means the person's own installation, run as it is. ``port``: 0 picks a free one. ``cpu``: None finds out. ``frontend``: a
    folder for ``--front-end-root``. ``arguments``: more for ``main.py``. ``environment``: variables on top of this process's.
    ``log_file``: by default ``<base>/user/server-<port>.log``.
    """

    def __init__(
        self,
        python: str | Path,
        comfyui: Path,
        base: Path,
        *,
        port: int = 0,
        cpu: bool | None = None,
        frontend: Path | None = None,
        arguments: Iterable[str] = (),
        environment: dict[str, str] | None = None,
        log_file: Path | None = None,
    ):
        self.python, self.comfyui, self.base = str(python), Path(comfyui).absolute(), Path(base).absolute()
        self.port = port or free_port()
        self.cpu, self.frontend, self.arguments = cpu, frontend, tuple(arguments)
        self.environment = environment or {}
        self.log_file = log_file or self.base / "user" / f"server-{self.port}.log"
        self.client_id = uuid.uuid4().hex
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # The process

    def command(self) -> list[str]:
        return [self.python, "-u", str(self.comfyui / "main.py"), "--port", str(self.port), *self.options()]

    def options(self) -> list[str]:
        """ComfyUI's own arguments but for the port."""
        known = (self.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")
        cpu = not has_accelerator(self.python) if self.cpu is None else self.cpu
        line = ["--disable-auto-launch"]
        if self.base != self.comfyui:
            line += ["--base-directory", str(self.base)]
        if cpu:
            line.append("--cpu")
        if '"--disable-api-nodes"' in known:
            line.append("--disable-api-nodes")
        if '"--database-url"' in known:  # by default in the ComfyUI folder, which several servers may share
            line += ["--database-url", f"sqlite:///{(self.log_file.parent / f'{self.log_file.stem}.db').as_posix()}"]
        if self.frontend is not None:
            line += ["--front-end-root", str(self.frontend)]
        return line + list(self.arguments)

    def variables(self) -> dict[str, str]:
        """The environment of its process."""
        environment = {**os.environ, "PYTHONUTF8": "1"}
        if self.base != self.comfyui:
            paths = [str(CPU_TORCH_AID), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return {**environment, **self.environment}

    def start(self, timeout: float = 300) -> Server:
        """Start and wait until it answers. Raises ServerError with the end of the log if it does not."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        # A group of its own: Ctrl-C in the terminal reaches only the parent, which then stops the server in order.
        apart: dict[str, Any] = {"start_new_session": True}
        if os.name == "nt":
            apart = {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.comfyui, env=self.variables(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, **apart,
            )  # fmt: skip
        try:
            self._wait_until_it_answers(timeout)
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_until_it_answers(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                self.get("/system_stats", timeout=10)
                return
            except (OSError, ValueError):
                time.sleep(0.2)
        raise ServerError(f"ComfyUI did not answer within {timeout:.0f} s. The end of {self.log_file}:\n{self.log_tail()}")

    def _check_alive(self) -> None:
        if self.process is None:
            raise ServerError("the server is not running: call start()")
        if (code := self.process.poll()) is not None:
            raise ServerError(f"ComfyUI ended with code {code}. The end of {self.log_file}:\n{self.log_tail()}")

    def stop(self, timeout: float = 15) -> None:
        """Ask it to end, as Ctrl-C would, and kill it if it does not within ``timeout`` seconds."""
        if self.process is None or self.process.poll() is not None:
            return
        if (
            os.name == "nt" or signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        ):  # in the background of a script: it ignores it too
            self.process.terminate()
        else:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def log(self) -> str:
        """Everything printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    # HTTP

    def get(self, path: str, timeout: float = 60) -> Any:
        """The JSON answer to a GET; OSError when nobody answers."""
        return json.loads(self._open(urllib.request.Request(self.url + path), timeout) or "null")

    def post(self, path: str, data: dict[str, Any], timeout: float = 60) -> Any:
        """The JSON answer (None if empty) to a POST of JSON."""
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json"})
        return json.loads(self._open(request, timeout) or "null")

    def fetch(self, path: str, timeout: float = 60) -> bytes:
        """The raw answer to a GET."""
        return self._open(urllib.request.Request(self.url + path), timeout)

    @staticmethod
    def _open(request: urllib.request.Request, timeout: float) -> bytes:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's loopback
        with direct.open(request, timeout=timeout) as answer:
            body: bytes = answer.read()
        return body

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """What the server says about all its nodes, or about one: ``{class: {"input": {"required": ...}, ...}}``."""
        info: dict[str, Any] = self.get("/object_info" + (f"/{urllib.parse.quote(node)}" if node else ""))
        return info

    def queue(self, prompt: dict[str, Any], extra_data: dict[str, Any] | None = None) -> str:
        """Queue an API prompt and return its id. ``extra_data``: e.g. ``{"extra_pnginfo": {"workflow": ...}}``.

        Raises ServerError with ``answer["node_errors"]`` when the server refuses it.
        """
        data = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data or {}}
        try:
            answer: dict[str, Any] = self.post("/prompt", data)
        except urllib.error.HTTPError as error:
            words = error.read().decode(errors="replace")
            try:
                refusal = json.loads(words)
            except ValueError:
                refusal = {}
            raise ServerError(f"the server refused the prompt: {words}", refusal) from None
        return str(answer["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a prompt that has ended; None before that."""
        entry: dict[str, Any] | None = self.get(f"/history/{prompt_id}").get(prompt_id)
        return entry

    def wait(
        self, prompt_id: str, timeout: float = 600, tick: Callable[[], None] | None = None, every: float = 0.25
    ) -> dict[str, Any]:
        """The history entry, as soon as the prompt has ended, well or not (see ``error_of``); ``tick`` is called meanwhile.

        Raises ServerError when the server dies, TimeoutError when time is up.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._check_alive()
            try:
                entry = self.history(prompt_id)
            except TimeoutError:  # busy: a long computation can hold the interpreter
                entry = None
            except OSError:
                time.sleep(every)
                self._check_alive()
                entry = None
            if entry is not None:
                return entry
            if time.monotonic() > deadline:
                raise TimeoutError(f"the prompt did not end within {timeout:.0f} s. The end of the log:\n{self.log_tail()}")
            if tick is not None:
                tick()
            time.sleep(every)

    def run(self, prompt: dict[str, Any], extra_data: dict[str, Any] | None = None, timeout: float = 600) -> dict[str, Any]:
        """Queue, wait, and raise ServerError (with the entry as ``answer``) unless it was a success."""
        entry = self.wait(self.queue(prompt, extra_data), timeout)
        if (problem := error_of(entry)) is not None:
            raise ServerError(problem, entry)
        return entry

    def interrupt(self) -> None:
        """Stop the prompt that is running, as the canvas's cross does."""
        self.post("/interrupt", {})

    def path_of(self, file: dict[str, str]) -> Path:
        """Where a file of a node's output (``{"filename", "subfolder", "type"}``) lies on disk."""
        return self.base / file.get("type", "output") / file.get("subfolder", "") / file["filename"]

    def pictures(self, entry: dict[str, Any], node: str | None = None) -> list[Path]:
        """The pictures that a prompt's nodes (or one of them) showed, in the order of the nodes."""
        outputs: dict[str, Any] = entry.get("outputs", {})
        chosen = outputs.values() if node is None else [outputs.get(str(node), {})]
        return [self.path_of(file) for output in chosen for file in output.get("images", [])]
