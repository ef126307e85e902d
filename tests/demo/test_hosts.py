"""Archives are checked and unpacked without trust; a person's ComfyUI and its Python are found where they usually are."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.demo import hosts
from lora_atelier.demo.hosts import HostError

PREFIX = "package-1.0/vendor/ComfyUI/"
TREE = {"main.py": b"print('main')", "comfy/cli_args.py": b"args", "comfy/ldm/unet.py": b"unet", "paths.yaml": b"bad"}


def tar_of(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(params=["tar", "zip"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    files = {PREFIX + name: data for name, data in TREE.items()} | {"package-1.0/setup.py": b"evil", "package-1.0/vendor/x": b""}
    return tar_of(tmp_path / "a.tar.gz", files) if request.param == "tar" else zip_of(tmp_path / "a.whl", files)


def test_only_the_tree_is_unpacked(archive: Path, tmp_path: Path) -> None:
    hosts.unpack(archive, PREFIX, tmp_path / "host", leave_out=("paths.yaml",))
    assert contents(tmp_path / "host") == {name: data for name, data in TREE.items() if name != "paths.yaml"}
    assert hosts.is_comfyui(tmp_path / "host")


def test_what_an_interrupted_unpacking_left_is_replaced(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "host.partial").mkdir()
    (tmp_path / "host.partial" / "half.py").write_text("half of a fi")
    hosts.unpack(archive, PREFIX, tmp_path / "host")
    assert contents(tmp_path / "host") == TREE
    assert not (tmp_path / "host.partial").exists()


def test_an_older_tree_is_replaced_whole(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "gone_in_the_new_one.py").touch()
    hosts.unpack(archive, PREFIX, tmp_path / "host")
    assert contents(tmp_path / "host") == TREE


@pytest.mark.parametrize(
    "name", ["../evil.py", "a/../../evil.py", "/etc/evil", "a//b.py", "C:/evil.py", "a\\..\\..\\evil.py", "./a"]
)
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_path_out_of_the_tree_is_refused_and_nothing_is_left(name: str, make: type, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    archive = make(tmp_path / "a", {PREFIX + "main.py": b"fine", PREFIX + name: b"evil"})
    with pytest.raises(HostError, match="unsafe path"):
        hosts.unpack(archive, PREFIX, folder / "host")
    assert contents(tmp_path) == {"a": archive.read_bytes()}


def test_a_link_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a", {PREFIX + "main.py": b"fine"}, {PREFIX + "models": "/etc"})
    with pytest.raises(HostError, match="models, which is no plain file"):
        hosts.unpack(archive, PREFIX, tmp_path / "host")
    entry = zipfile.ZipInfo(PREFIX + "models")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "z", "w") as zipped:
        zipped.writestr(entry, "/etc")
    with pytest.raises(HostError, match="holds the link"):
        hosts.unpack(tmp_path / "z", PREFIX, tmp_path / "host")
    assert not (tmp_path / "host").exists()


def test_an_archive_without_the_tree_is_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.whl", {"other/main.py": b""})
    with pytest.raises(HostError, match="holds no package"):
        hosts.unpack(archive, PREFIX, tmp_path / "host")


@given(st.text(alphabet="a./\\:", max_size=12))
def test_an_accepted_path_never_leaves_the_target(inner: str) -> None:
    try:
        path = hosts.inner_path(PREFIX + inner, PREFIX)
    except HostError:
        return
    if path is not None:
        target = Path("/target/host")
        assert target in Path(f"{target}/{path}").resolve().parents


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "archive.whl"
    file.write_bytes(b"what was pinned")
    pin = hashlib.sha256(b"what was pinned").hexdigest()
    hosts.check_archive(file, pin)
    file.write_bytes(b"what was pinneD")
    with pytest.raises(HostError, match=r"archive\.whl is not the file that is expected"):
        hosts.check_archive(file, pin)


def make_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    (folder / "main.py").touch()
    (folder / "comfy" / "cli_args.py").touch()
    return folder


def test_a_pack_in_custom_nodes_finds_the_comfyui_around_it(tmp_path: Path) -> None:
    comfyui = make_comfyui(tmp_path / "ComfyUI")
    assert hosts.comfyui_around(comfyui / "custom_nodes" / "lora-atelier") == comfyui
    assert hosts.comfyui_around(tmp_path / "lora-atelier") is None
    assert hosts.comfyui_around(tmp_path / "home" / "custom_nodes" / "lora-atelier") is None


def test_the_folder_of_the_portable_package_is_accepted_too(tmp_path: Path) -> None:
    comfyui = make_comfyui(tmp_path / "ComfyUI_windows_portable" / "ComfyUI")
    assert hosts.find_comfyui(comfyui) == comfyui
    assert hosts.find_comfyui(comfyui.parent) == comfyui
    with pytest.raises(HostError, match=r"main\.py"):
        hosts.find_comfyui(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        "ComfyUI/venv/bin/python",
        "ComfyUI/.venv/bin/python",
        "ComfyUI/.venv/Scripts/python.exe",
        "venv/bin/python",
        "python_embeded/python.exe",
    ],
)
def test_the_python_inside_or_beside_is_found(place: str, tmp_path: Path) -> None:
    comfyui = make_comfyui(tmp_path / "ComfyUI")
    assert hosts.python_of(comfyui) == Path(sys.executable)
    python = tmp_path / place
    python.parent.mkdir(parents=True)
    python.touch()
    assert hosts.python_of(comfyui) == python


def test_the_inner_python_wins_over_the_one_beside(tmp_path: Path) -> None:
    comfyui = make_comfyui(tmp_path / "ComfyUI")
    for folder in (tmp_path, comfyui):
        (folder / "venv" / "bin").mkdir(parents=True)
        (folder / "venv" / "bin" / "python").touch()
    assert hosts.python_of(comfyui) == comfyui / "venv" / "bin" / "python"


def test_a_pack_linked_under_any_name_is_found(tmp_path: Path) -> None:
    comfyui, pack = make_comfyui(tmp_path / "ComfyUI"), tmp_path / "pack"
    pack.mkdir()
    assert hosts.linked_pack(comfyui, pack) is None
    (comfyui / "custom_nodes" / "my-trainer").symlink_to(pack, target_is_directory=True)
    assert hosts.linked_pack(comfyui, pack) == comfyui / "custom_nodes" / "my-trainer"


def test_requirements_leave_the_two_large_packages_out(comfyui: Path, comfyui_old: Path) -> None:
    for tree in (comfyui, comfyui_old):
        names = hosts.requirements_of(tree)
        assert {"torch", "torchvision", "torchaudio", "spandrel"} <= set(names)
        assert not [name for name in names if "templates" in name or "docs" in name or name.startswith("#")]
        assert hosts.frontend_of(tree).startswith("comfyui-frontend-package==1.")


def test_the_hosts_that_the_tests_run_on_are_the_pinned_ones(comfyui: Path, comfyui_old: Path) -> None:
    for tree, host in ((comfyui, hosts.MAIN), (comfyui_old, hosts.OLDEST)):
        if tree.name == host.folder:
            assert f'"{host.version}"' in (tree / "comfyui_version.py").read_text()
            assert not any((tree / name).exists() for name in host.leave_out)
