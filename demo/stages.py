"""A set-up in stages that can be interrupted anywhere and goes on where it stopped. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

NO_NETWORK = re.compile(
    r"name resolution|getaddrinfo|NewConnectionError|ConnectTimeout|ReadTimeout|Network is unreachable|Connection refused"
    r"|No route to host|Max retries exceeded|ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN",
    re.IGNORECASE,
)
DISK_FULL = re.compile(r"No space left on device|ENOSPC|not enough space on the disk", re.IGNORECASE)
WRONG_FILE = re.compile(r"DO NOT MATCH THE HASHES", re.IGNORECASE)
NO_RELEASE = re.compile(r"No matching distribution found for (\S+)")
NO_VENV = re.compile(r"ensurepip is not available|No module named '?(venv|ensurepip)|ensurepip.*returned non-zero", re.I)
LARGE_DOWNLOAD = re.compile(r"^Downloading (\S+) \((\d\d+)(?:\.\d)? MB\)")  # 10 MB and more
INSTALLING = re.compile(r"^Installing collected packages: (.*)")


class SetupError(RuntimeError):
    """The set-up stopped; the message says in one sentence what to do."""


def advice(output: str, log: Path) -> str:
    """One sentence on what to do about a failed command, from what it printed."""
    if DISK_FULL.search(output):
        return f"the disk is full: make room on the disk of {log.parent}, then start again, it goes on where it stopped"
    if NO_NETWORK.search(output):
        return (
            "a package could not be downloaded: check the network (or the proxy), then start again, it goes on where it stopped"
        )
    if WRONG_FILE.search(output):
        return f"a downloaded file is not the one that is pinned, so it was not used: see {log}"
    if NO_VENV.search(output):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"this Python cannot make virtual environments: install python{version}-venv (Debian, Ubuntu), then start again"
    if found := NO_RELEASE.search(output):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"{found[1]} was not found for Python {version}: check the network, and use Python 3.10 to 3.13; then start again"
    return f"a command failed: see the end of {log}, then start again, it goes on where it stopped"


def fingerprint(inputs: object) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def milestone(line: str) -> str | None:
    """What a person waiting wants to know of a line that pip printed."""
    if found := LARGE_DOWNLOAD.match(line):
        return f"{found[1].split('-')[0]}, {found[2]} MB"
    if found := INSTALLING.match(line):
        return f"installing {len(found[1].split(','))} packages"
    return None


class Stages:
    """Runs stages once: each leaves a stamp with the fingerprint of what it was made from, and is skipped while that holds."""

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self.stamps, self.log, self.say = folder / "stamps", folder / "setup.log", say
        self.stamps.mkdir(parents=True, exist_ok=True)

    def is_done(self, name: str, inputs: object, outputs: Iterable[Path] = ()) -> bool:
        """Whether the stage ended well with these inputs, and what it made is still there."""
        stamp = self.stamps / name
        done = stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == fingerprint(inputs)
        return done and all(path.exists() for path in outputs)

    def run(self, name: str, title: str, inputs: object, work: Callable[[], object], outputs: Sequence[Path] = ()) -> bool:
        """Do the work unless it is done; returns whether it was done now. The stamp is written last, after success."""
        if self.is_done(name, inputs, outputs):
            return False
        self.say(f"{title} ...")
        started = time.monotonic()
        (self.stamps / name).unlink(missing_ok=True)
        work()
        partial = self.stamps / f"{name}.{os.getpid()}.partial"
        partial.write_text(fingerprint(inputs), encoding="utf-8")
        os.replace(partial, self.stamps / name)
        self.say(f"{title}: done in {time.monotonic() - started:.0f} s")
        return True

    def command(self, line: Sequence[str | Path], **options: object) -> None:
        """Run a command; its output goes to the log, its milestones to the person. Raises SetupError with advice."""
        words = [str(word) for word in line]
        heard: list[str] = []
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(words)}\n")
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    encoding="utf-8", errors="replace", **options,  # type: ignore[call-overload]
                )  # fmt: skip
            except OSError as error:
                raise SetupError(f"{words[0]} cannot be started ({error})") from error
            with process:
                for text in process.stdout:
                    log.write(text)
                    heard.append(text)
                    if news := milestone(text.strip()):
                        self.say(f"  {news}")
        if process.returncode != 0:
            raise SetupError(advice("".join(heard), self.log))
