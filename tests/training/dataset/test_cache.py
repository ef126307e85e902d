"""The tensor cache: whole files or none, two processes, damage, limit."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
import zlib

import pytest
import safetensors.torch
import torch
from lora_atelier.training.dataset.cache import TensorCache, cache_key
from lora_atelier.training.errors import AtelierError, NotFinite
from safetensors.torch import save

KEY = cache_key("picture", (512, 512), (0, 0), "vae")


@pytest.fixture
def cache(tmp_path):
    return TensorCache(tmp_path / "cache", 1 << 30)


def test_what_is_put_comes_back(cache):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {"x": base, "turned": base.T, "half": base.to(torch.bfloat16), "part": base[1:2]}
    cache.put(KEY, tensors)
    found = cache.get(KEY)
    assert found is not None and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert cache.path(KEY).parent.name == KEY[:2]
    assert TensorCache(cache.folder, 1).get(cache_key("other")) is None


def test_inference_tensors_are_stored_and_come_back_as_normal_ones(cache):
    with torch.inference_mode():
        cache.put(KEY, {"x": torch.ones(3)})
    found = cache.get(KEY)
    assert found is not None and not found["x"].is_inference()


def test_keys_are_the_same_in_another_process_and_differ_by_every_part():
    assert cache_key("a", (1, 2), None) == hashlib.sha256(b'["a",[1,2],null]').hexdigest()
    assert cache_key("a", (1, 2)) == cache_key("a", [1, 2])
    assert len({cache_key("a", 1), cache_key("a", "1"), cache_key("a1"), cache_key("a", 1, None), cache_key("a", 1.5)}) == 5


@pytest.mark.parametrize("key", ["../../x", "AB" * 32, "", "a/b", "a" * 15])
def test_a_key_can_never_name_another_place(cache, key):
    with pytest.raises(ValueError, match="is not a cache key"):
        cache.get(key)


def test_tensors_are_serialised_once_and_files_of_earlier_versions_are_read(cache, monkeypatch):
    values = {"x": torch.arange(5.0), "y": torch.ones(2, dtype=torch.float16)}
    crc = zlib.crc32(memoryview(data := save(values))[8 + int.from_bytes(data[:8], "little") :])
    earlier = save(values, {"key": KEY, "crc32": f"{crc:08x}"})
    calls, real = [], safetensors.torch.serialize
    monkeypatch.setattr(safetensors.torch, "serialize", lambda *given, **named: calls.append(1) or real(*given, **named))
    cache.put(KEY, values)
    assert len(calls) == 1
    stored = cache.path(KEY).read_bytes()
    assert safetensors.torch.load(stored).keys() == values.keys()
    cache.path(KEY).write_bytes(earlier)
    found = cache.get(KEY)
    assert found is not None and all(torch.equal(found[name], values[name]) for name in values)


def test_a_full_disk_is_named_as_the_caches(cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    expected = r"cache: .*cache cannot be written \(No space left on device\)\. Make room on the disk, or allow writing there\."
    with pytest.raises(AtelierError, match=expected):
        cache.put(KEY, {"x": torch.zeros(1)})
    assert not list(cache.folder.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "zeros", "header"])
def test_a_damaged_file_is_a_miss_and_is_replaced(cache, damage):
    cache.put(KEY, {"x": torch.ones(1000)})
    path = cache.path(KEY)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-7]
    elif damage == "flipped":
        data[-5] ^= 1
    elif damage == "empty":
        data = bytearray()
    elif damage == "zeros":
        data[-2000:] = bytes(2000)
    else:
        data[12] ^= 0xFF
    path.write_bytes(data)
    assert cache.get(KEY) is None
    cache.put(KEY, {"x": torch.ones(1000)})
    found = cache.get(KEY)
    assert found is not None and torch.equal(found["x"], torch.ones(1000))


def test_a_file_under_a_wrong_name_is_a_miss(cache):
    cache.put(KEY, {"x": torch.ones(2)})
    other = cache_key("other")
    cache.path(other).parent.mkdir(exist_ok=True)
    os.rename(cache.path(KEY), cache.path(other))
    assert cache.get(other) is None


def test_the_longest_unused_go_first(tmp_path):
    block = {"x": torch.zeros(2500)}
    cache = TensorCache(tmp_path, 1 << 30)
    keys = [cache_key(i) for i in range(6)]
    for age, key in enumerate(keys):
        cache.put(key, block)
        os.utime(cache.path(key), (1000 + age, 1000 + age))
    cache.get(keys[0])
    size = cache.path(keys[0]).stat().st_size
    small = TensorCache(tmp_path, 4 * size)
    small.put(cache_key("new"), block)
    left = {path.stem for path in tmp_path.glob("*/*.safetensors")}
    assert left == {cache_key("new"), keys[0], keys[5]}


def test_what_was_just_stored_survives_a_limit_that_is_too_small(tmp_path):
    cache = TensorCache(tmp_path, 10)
    cache.put(KEY, {"x": torch.zeros(100)})
    assert cache.get(KEY) is not None


def test_temporary_files_of_dead_runs_go_and_living_ones_stay(tmp_path):
    cache = TensorCache(tmp_path, 1 << 20)
    cache.put(KEY, {"x": torch.zeros(1)})
    folder = cache.path(KEY).parent
    old, young = folder / "old.partial", folder / "young.partial"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    TensorCache(tmp_path, 1 << 20).put(cache_key("other"), {"x": torch.zeros(1)})
    assert not old.exists() and young.exists()


WRITER = """
import sys, importlib.machinery, types
package = types.ModuleType("lora_atelier"); package.__path__ = [sys.argv[1]]; sys.modules["lora_atelier"] = package
import torch
from pathlib import Path
from lora_atelier.training.dataset.cache import TensorCache, cache_key
cache = TensorCache(Path(sys.argv[2]), 60_000)
for turn in range(60):
    key = cache_key(turn % 12)
    found = cache.get(key)
    assert found is None or torch.equal(found["x"], torch.full((2000,), float(turn % 12))), turn
    cache.put(key, {"x": torch.full((2000,), float(turn % 12))})
"""


def test_two_processes_share_a_folder_that_is_always_full(root, tmp_path):
    """The limit holds seven of twelve files, so both runs remove each other's while reading and writing."""
    runs = [subprocess.Popen([sys.executable, "-c", WRITER, str(root), str(tmp_path)], stderr=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors.decode()
    assert not list(tmp_path.glob("*/*.partial"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(AtelierError, match=r"cache: .*cache cannot be written"):
        TensorCache(tmp_path / "cache", 100).put(KEY, {"x": torch.zeros(1)})


# Numbers ------------------------------------------------------------------------------------------------------------------


def by_an_earlier_version(cache: TensorCache, tensors: dict[str, torch.Tensor]) -> None:
    """As it stored whatever it was given."""
    crc = zlib.crc32(memoryview(data := save(tensors))[8 + int.from_bytes(data[:8], "little") :])
    cache.path(KEY).parent.mkdir(parents=True, exist_ok=True)
    cache.path(KEY).write_bytes(save(tensors, {"key": KEY, "crc32": f"{crc:08x}"}))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_what_is_no_number_is_neither_kept_nor_believed(cache, number, dtype):
    if dtype == torch.float8_e5m2 and number != number:
        pytest.skip("safetensors and torch disagree on its NaN")
    bad = {"sound": torch.ones(2), "cond": torch.tensor([1.0, number]).to(dtype)}
    with pytest.raises(NotFinite, match="cache: cond holds NaN or infinite"):
        cache.put(KEY, bad)
    assert not cache.has(KEY) and cache.get(KEY) is None
    for look in (cache.has, cache.get):
        by_an_earlier_version(cache, bad)
        assert not look(KEY)
        assert not cache.path(KEY).exists(), "so that it is made again"


def test_the_mask_of_attention_may_leave_out(cache):
    cache.put(KEY, {"attention_mask": torch.tensor([0.0, -float("inf")])})
    assert cache.get(KEY)["attention_mask"][1] == -float("inf")
    with pytest.raises(NotFinite):
        cache.put(KEY, {"attention_mask": torch.tensor([float("nan")])})


def test_an_earlier_versions_file_is_looked_at_once(cache, monkeypatch):
    values = {"x": torch.arange(5.0)}
    by_an_earlier_version(cache, values)
    assert cache.has(KEY)
    monkeypatch.setattr(TensorCache, "get", lambda *_: pytest.fail("read again"))
    assert cache.has(KEY)
    monkeypatch.undo()
    assert torch.equal(cache.get(KEY)["x"], values["x"])


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}", b"\2\0\0\0\0\0\0\0[]"]
)
def test_a_damaged_header_is_no_file(cache, content):
    cache.path(KEY).parent.mkdir(parents=True)
    cache.path(KEY).write_bytes(content)
    assert not cache.has(KEY) and cache.get(KEY) is None and not cache.path(KEY).exists()
