"""Going on from a file: the same output, the configured scale, and a clear word when the file does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network import lora_file
from lora_atelier.training.network.warm_start import start_from
from safetensors.torch import load_file, save_file

from .support import KINDS, close, layers, names, outputs, trained


def saved(path, where, kind: str, **more: torch.Tensor):
    adapter = trained(where, KINDS[kind])
    save_file({**lora_file.to_file(adapter, names(), "SDXL", torch.float32, where), **more}, path)
    return adapter


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_with_the_files_outputs_and_ranks(tmp_path, kind):
    where = layers()
    adapter = saved(tmp_path / "a.safetensors", where, kind)
    config = replace(KINDS[kind], rank=9, alpha=3.0, conv_rank=0, conv_alpha=0.0, dropout=0.0, rank_dropout=0.2)
    again = start_from(tmp_path / "a.safetensors", where, names(), config)
    before, after = outputs(where, adapter), outputs(where, again)
    for name, branch in again.branches.items():
        assert close(after[name], before[name]), name
        assert branch.rank == adapter.branches[name].rank
        if branch.algorithm == "LoRA":  # alpha keeps its configured ratio, 3 / 9
            assert branch.scale == pytest.approx(1 / 3 * (branch.rank**0.5 if config.rank_stabilised else 1))
    assert again.dropout.ranks == 0.2


def test_rates_come_from_the_rules_and_layers_from_the_file(tmp_path):
    where = layers()
    adapter = trained({"mid.fc": where["mid.fc"]}, NetworkConfig(4))
    save_file(lora_file.to_file(adapter, names(), "SDXL", torch.float32), tmp_path / "a.safetensors")
    again = start_from(tmp_path / "a.safetensors", where, names(), NetworkConfig(2, rules="mid.* rank=7 alpha=2 rate=3"))
    assert list(again.branches) == ["mid.fc"]
    assert (again.branches["mid.fc"].rank, again.branches["mid.fc"].scale, again.branches["mid.fc"].rate) == (4, 0.5, 3.0)


def test_a_plain_file_becomes_a_dora_with_the_same_output(tmp_path):
    where = layers()
    adapter = saved(tmp_path / "a.safetensors", where, "LoRA")
    again = start_from(tmp_path / "a.safetensors", where, names(), NetworkConfig(4, weight_decompose=True))
    assert all(branch.magnitude is not None for branch in again.branches.values())
    before, after = outputs(where, adapter), outputs(where, again)
    assert all(close(after[n], before[n]) for n in where)


def test_the_text_encoders_part_is_left_out_with_a_word(tmp_path, caplog):
    te = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 3)}
    saved(tmp_path / "a.safetensors", layers(), "LoRA", **te)
    assert len(start_from(tmp_path / "a.safetensors", layers(), names(), KINDS["LoRA"]).branches) == 4
    assert "text encoder's part" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_unet_down_9.lora_down.weight": torch.zeros(2, 3)}, "1 parts that this model lacks, such as lora_unet_down_9"),
        ({"lora_unet_mid_fc.lora_down.weight": torch.zeros(4, 31)}, r"lora_unet_mid_fc has other sizes .* \(42, 30\)"),
        ({"lora_unet_mid_fc.diff": torch.zeros(4)}, "such as lora_unet_mid_fc.diff"),
    ],
)
def test_another_models_file_is_refused(tmp_path, change, said):
    saved(tmp_path / "a.safetensors", layers(), "LoRA", **change)
    with pytest.raises(AtelierError, match=f"start from: a.safetensors does not belong to this model: .*{said}"):
        start_from(tmp_path / "a.safetensors", layers(), names(), KINDS["LoRA"])


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr, whole"])
def test_products_of_other_sizes_are_refused(tmp_path, kind):
    where = layers()
    adapter = trained(where, KINDS[kind])
    file = lora_file.to_file(adapter, names(), "SDXL", torch.float32)
    key = next(k for k in file if "mid_fc" in k and k.endswith(("w1_b", "w1")))
    file[key] = torch.cat([file[key], file[key]], dim=1)
    save_file(file, tmp_path / "a.safetensors")
    with pytest.raises(AtelierError, match="lora_unet_mid_fc has other sizes"):
        start_from(tmp_path / "a.safetensors", where, names(), KINDS[kind])


def test_another_algorithm_is_refused(tmp_path):
    saved(tmp_path / "a.safetensors", layers(), "LoHa")
    with pytest.raises(AtelierError, match=r"is a LoHa, and algorithm is LoRA\. Set algorithm to LoHa"):
        start_from(tmp_path / "a.safetensors", layers(), names(), NetworkConfig())
    saved(tmp_path / "b.safetensors", layers(), "DoRA")
    with pytest.raises(AtelierError, match=r"b\.safetensors is a DoRA\. Switch weight decompose on"):
        start_from(tmp_path / "b.safetensors", layers(), names(), NetworkConfig())


def test_a_lokr_of_whole_halves_goes_on_whatever_its_alpha(tmp_path):
    """ai-toolkit's is 9999999999, which is infinite in half precision, and counts for nothing."""
    where, config = layers(), NetworkConfig(rank=64, alpha=64.0, algorithm="LoKr", lokr_factor=2)
    adapter = trained(where, config)
    file = lora_file.to_file(adapter, names(), "SDXL", torch.float32, where)
    assert not any(".lokr_w2_" in key for key in file)
    save_file({k: torch.tensor(1e10).half() if k.endswith(".alpha") else v for k, v in file.items()}, tmp_path / "a.safetensors")
    before, after = outputs(where, adapter), outputs(where, start_from(tmp_path / "a.safetensors", where, names(), config))
    assert all(close(after[name], before[name]) for name in before)


def test_a_file_without_numbers_is_no_start(tmp_path):
    saved(tmp_path / "a.safetensors", layers(), "LoRA")
    file = load_file(tmp_path / "a.safetensors")
    key = next(key for key in file if key.endswith("lora_up.weight"))
    save_file(file | {key: file[key] * float("nan")}, tmp_path / "a.safetensors")
    with pytest.raises(AtelierError, match=r"start from: a\.safetensors holds NaN or infinite numbers \(lora_unet_.*lora_up"):
        start_from(tmp_path / "a.safetensors", layers(), names(), NetworkConfig())


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    for name, said in (("gone.safetensors", "gone"), ("broken.safetensors", "cannot be read"), ("a.pt", "only these are read")):
        with pytest.raises(AtelierError, match=f"start from: {name} .*{said}"):
            start_from(tmp_path / name, layers(), names(), NetworkConfig())
