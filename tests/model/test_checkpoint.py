# SPDX-License-Identifier: Apache-2.0
"""Files of weights: what is read, what is refused and in which words."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from networks import small
from safetensors.torch import save_file

import ditn
from ditn import CheckpointError


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_round_trip(tmp_path, suffix: str) -> None:
    model = small(ditn.DITN_Tiny, upscale=3, bias=True, ufone_conv=True, expansion=1.5)
    path = tmp_path / f"weights{suffix}"
    ditn.save(model, path)
    loaded = ditn.load(path, flavor="official")
    assert loaded.config == model.config
    assert not loaded.training
    image = torch.rand(1, 3, 9, 8)
    torch.testing.assert_close(loaded(image), model(image), rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_every_length_of_a_header_is_read(tmp_path) -> None:
    # Headers are padded to 8 bytes, so one of these 32 lengths has the first byte 0x80, with which a pickle begins.
    model = small()
    for filler in range(0, 256, 8):
        ditn.save(model, tmp_path / "a.safetensors", metadata={"filler": "x" * filler}, overwrite=True)
        assert ditn.load(tmp_path / "a.safetensors").config == model.config


def test_config_is_inferred(shared) -> None:
    config = ditn.load(shared / "golden" / "DITN_Real_x4.pth").config
    assert config == ditn.DITN_Real.defaults


def test_patch_size_travels_in_metadata_or_by_name(tmp_path) -> None:
    model = small(patch_size=4)
    ditn.save(model, tmp_path / "a.safetensors")
    ditn.save(model, tmp_path / "a.pth")
    assert ditn.load(tmp_path / "a.safetensors").config.patch_size == 4
    assert ditn.load(tmp_path / "a.pth").config.patch_size == 8
    assert ditn.load(tmp_path / "a.pth", patch_size=4).config == model.config


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict"])
def test_wrappers_of_trainers(tmp_path, wrapper: str) -> None:
    model = small()
    wrapped = {wrapper: {f"module.{key}": value for key, value in model.state_dict().items()}, "iteration": 7}
    torch.save(wrapped, tmp_path / "a.pth")
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(ditn.load(tmp_path / "a.pth")(image), model(image), rtol=0, atol=0)


def test_params_ema_comes_first(tmp_path) -> None:
    model = small()
    state = model.state_dict()
    torch.save({"params": {k: v * 2 for k, v in state.items()}, "params_ema": state}, tmp_path / "a.pth")
    assert torch.equal(ditn.load(tmp_path / "a.pth").sft.weight, state["sft.weight"])


def test_neosr_flavor_sets_the_temperature(tmp_path) -> None:
    model = small()
    model.UFONE[0].ITLs[0].attn.temperature.fill_(1)
    ditn.save(model, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match='flavor="neosr"'):
        ditn.load(tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = ditn.load(tmp_path / "a.pth", flavor="official")
        neosr = ditn.load(tmp_path / "a.pth", flavor="neosr")
    assert float(plain.UFONE[0].ITLs[0].attn.temperature) == 1
    assert float(neosr.UFONE[0].ITLs[0].attn.temperature) == 1 / 8
    with pytest.raises(ValueError, match="flavor is 'neo'"):
        ditn.load(tmp_path / "a.pth", flavor="neo")


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the code ran')",))


def _damaged(kind: str, folder) -> object:
    state = dict(small().state_dict())
    path = folder / "bad.pth"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("these are no weights")
    elif kind == "code":
        path.write_bytes(pickle.dumps({"sft.weight": Code()}))
    elif kind == "code in a zip":
        torch.save({"sft.weight": Code()}, path)
    elif kind == "cut pth":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "cut safetensors":
        path = folder / "bad.safetensors"
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "cut header":
        path = folder / "bad.safetensors"
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:200])
    else:
        match kind:
            case "missing":
                del state["conv_after_body.bias"]
            case "unexpected":
                state["extra.weight"] = torch.zeros(1)
            case "shape":
                state["conv_after_body.bias"] = torch.zeros(5)
            case "nan":
                state["sft.weight"][0, 0, 0, 0] = torch.nan
            case "no network":
                state = {"weight": torch.zeros(3)}
            case "not tensors":
                state["sft.bias"] = "hello"
            case "outputs":
                state["upsample.0.weight"] = torch.zeros(7, 12, 3, 3)
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty"),
        ("text", r"starts with b'these ar'"),
        ("code", r"refers to builtins\.exec at byte \d+ .* was not run"),
        ("code in a zip", r"refers to __builtin__\.exec at byte \d+ .* was not run"),
        ("cut pth", "is cut off after 3000 bytes"),
        ("cut safetensors", r"is cut off after \d+ of \d+ bytes"),
        ("cut header", "is cut off after 200 bytes: its header alone takes"),
        ("missing", r"lacks conv_after_body\.bias"),
        ("unexpected", r"has unexpected extra\.weight"),
        ("shape", r"conv_after_body\.bias has shape \[5\], expected \[12\]"),
        ("nan", r"sft\.weight has 1 values of 324 that are not finite"),
        ("no network", r"has no sft\.weight; these are not the weights of a DITN"),
        ("not tensors", r"sft\.bias is a str, expected a tensor"),
        ("outputs", r"upsample\.0\.weight has 7 outputs"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, kind: str, message: str) -> None:
    path = _damaged(kind, tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        ditn.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_names_what_ships(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no file and no shipped model"):
        ditn.load(tmp_path / "nothing.pth")


def test_save_overwrites_only_when_asked_and_leaves_nothing_half_done(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ditn.save(small(), path)
    assert path.read_text() == "mine"
    ditn.save(small(), path, overwrite=True, metadata={"note": "hello"}, dtype=torch.float16)
    assert ditn.load(path).sft.weight.dtype == torch.float32
    with pytest.raises(ValueError, match=r"\.safetensors, \.pth or \.pt"):
        ditn.save(small(), tmp_path / "a.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_shipped_weights_load_by_name() -> None:
    assert ditn.models()
    for name in ditn.models():
        model = ditn.load(name)
        assert model(torch.rand(1, 3, 8, 8)).isfinite().all()
