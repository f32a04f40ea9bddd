# SPDX-License-Identifier: Apache-2.0
"""Files of weights: what is read, what is refused and in which words."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from networks import small
from safetensors.torch import load_file, save_file

import ditn
from ditn import CheckpointError
from ditn.model.checkpoint import infer_config


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


def test_what_the_tensors_say_is_inferred(tmp_path) -> None:
    """Upscale and channels, from gray to colour as well, which is what spandrel makes of one channel."""
    for upscale in (1, 2, 3, 4, 5, 6, 7, 8):
        for channels, outputs in ((3, 3), (1, 1), (1, 3), (3, 1), (4, 4)):
            model = small(dim=4, upscale=upscale, in_channels=channels, out_channels=outputs)
            assert infer_config(model.state_dict()) == model.config
    # Only metadata tells these apart.
    model = small(dim=4, upscale=4, in_channels=4, out_channels=1)
    ditn.save(model, tmp_path / "a.safetensors")
    assert ditn.load(tmp_path / "a.safetensors").config == model.config
    assert infer_config(model.state_dict()).upscale == 2


@pytest.mark.parametrize(("dim", "expansion"), [(46, 2.66), (49, 1.01 / 49), (60, 2), (93, 1.7)])
def test_the_hidden_channels_are_inferred_whatever_their_ratio(dim: int, expansion: float) -> None:
    """122 / 46 and 1 / 49 are rounded, and times the dimension less than what they came from."""
    model = small(dim=dim, expansion=expansion)
    hidden = model.UFONE[0].ITLs[0].ffn.project_out.weight.shape[1]
    assert infer_config(model.state_dict()).hidden == hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_come_from_the_file_as_they_are(tmp_path, dtype: torch.dtype) -> None:
    model = small().to(dtype)
    model.sft.weight.mul_(1 / 3)
    ditn.save(model, tmp_path / "a.safetensors")
    try:
        torch.set_default_dtype(torch.bfloat16)
        loaded = ditn.load(tmp_path / "a.safetensors", dtype=dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in load_file(tmp_path / "a.safetensors").items():
        assert value.dtype == loaded.state_dict()[key].dtype == dtype
        assert torch.equal(loaded.state_dict()[key], value), key


def behind(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def renamed(old: str, new: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.replace(old, new): value for key, value in state.items()}


# How trainers write a network's state dict `s`.
WRITTEN = {
    "module.": lambda s: behind("module.", s),
    "module._orig_mod.": lambda s: behind("module._orig_mod.", s),
    "_orig_mod.module.module.": lambda s: behind("_orig_mod.module.module.", s),
    "model.": lambda s: behind("model.", s),
    "net_g.module.": lambda s: behind("net_g.module.", s),
    "netG.": lambda s: behind("netG.", s),
    "generator._orig_mod.model.": lambda s: behind("generator._orig_mod.model.", s),
    "a compiled part": lambda s: renamed("UFONE.", "UFONE._orig_mod.", s),
    "params": lambda s: {"params": behind("module.", s), "iteration": 7},
    "params_ema": lambda s: {"params_ema": behind("module.", s), "iteration": 7},
    "params-ema": lambda s: {"params-ema": s},
    "state_dict": lambda s: {"state_dict": behind("module.", s), "epoch": 7},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}},
    "model": lambda s: {"model": s},
    "net": lambda s: {"net": s},
    "ema": lambda s: {"ema": {"module": s}},
    "generator": lambda s: {"generator": s, "discriminator": {"conv.weight": torch.zeros(3)}},
    "any single key": lambda s: {"what nobody thought of": {"and": s}},
    "Lightning": lambda s: {"state_dict": behind("net_g.", s) | {"net_d.weight": torch.zeros(3)}, "epoch": 7},
    "AveragedModel": lambda s: behind("module.", s) | {"n_averaged": torch.tensor(3)},
    "AveragedModel, freed": lambda s: s | {"n_averaged": torch.tensor(3)},
    "flat": lambda s: (
        s | {"epoch": 7, "step": torch.tensor(3), "optimizer": {"state": {0: {"average": torch.ones(3)}}}}
    ),
    "DeepSpeed": lambda s: {"module": s, "epoch": 7, "optimizer": {"state": {0: {"average": torch.ones(3)}}}},
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_trainers_wrap_around_weights(tmp_path, written: str, suffix: str) -> None:
    model, path = small(), tmp_path / f"a{suffix}"
    content = WRITTEN[written](dict(model.state_dict()))
    if suffix == ".pth":
        torch.save(content, path)
    elif all(isinstance(value, torch.Tensor) for value in content.values()):
        save_file(content, path)
    else:
        return  # no dicts in dicts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = ditn.load(path).state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize(
    ("average", "other", "prefix"),
    [
        ("params_ema", "params", ""),
        ("params-ema", "params", ""),
        ("ema", "model", "module."),
        ("model_ema", "state_dict", ""),
        ("netG_ema", "netG", ""),
        ("generatorEMA", "generator", ""),
        ("EMA", "net", "_orig_mod."),
    ],
)
def test_the_average_is_taken_and_said(tmp_path, average: str, other: str, prefix: str) -> None:
    state = small().state_dict()
    last = behind(prefix, {key: 2 * value for key, value in state.items()})
    for content in (
        {other: last, average: behind(prefix, state)},
        {average: behind(prefix, state), other: last},
        {"state_dict": behind(f"{other}.", last) | behind(f"{average}.", state)},
    ):
        torch.save(content, tmp_path / "a.pth")
        with pytest.warns(UserWarning, match=f"a.pth holds .*{average}, a moving average, beside .*{other}"):
            loaded = ditn.load(tmp_path / "a.pth")
        assert torch.equal(loaded.sft.weight, state["sft.weight"])


def test_a_cinema_is_no_moving_average(tmp_path) -> None:
    state = small().state_dict()
    torch.save({"cinema": state, "schema_1": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds several networks: cinema, schema_1; save the one"):
        ditn.load(tmp_path / "a.pth")
    torch.save({"sft.weight": state["sft.weight"], "module.sft.weight": state["sft.weight"]}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds sft\.weight twice, once as module\.sft\.weight"):
        ditn.load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("options/train.yml", "Expecting value"),
        ("[1]", "must be a mapping"),
        ("null", "must be a mapping"),
        ('{"num_feat": 64}', "unexpected keyword argument 'num_feat'"),
        ('{"dim": "60"}', "dim is '60', must be a whole number"),
        ('{"ufones": 2.5}', "ufones is 2.5, must be a whole number"),
        ('{"upscale": 9}', "upscale is 9, must be 1 to 8"),
        ('{"expansion": 1e400}', "expansion is inf"),
        ('{"ufones": 1000000000}', r"holds \d+ tensors, too few"),
        ('{"dim": 1000000000000}', "no network can be as large as"),
        (f'{{"dim": 1{"0" * 30}}}', "no network can be as large as"),
        (f'{{"patch_size": 1{"0" * 40}}}', "patch_size is 10+, must be at most 4096"),
        ('{"dim": 60}', "lacks UFONE"),
    ],
)
def test_metadata_of_others(tmp_path, config: str, message: str) -> None:
    save_file(dict(small().state_dict()), tmp_path / "a.safetensors", {"config": config})
    with pytest.raises(CheckpointError, match=f"a.safetensors.*{message}"):
        ditn.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("kind", "convert"),
    [
        ("float8_e4m3fn", lambda t: t.to(torch.float8_e4m3fn)),
        ("float8_e5m2", lambda t: t.to(torch.float8_e5m2)),
        ("int8", lambda t: t.to(torch.int8)),
        ("complex64", lambda t: t.to(torch.complex64)),
        ("sparse_coo", lambda t: t.to_sparse()),
        ("without values", lambda t: t.to("meta")),
    ],
)
def test_what_are_no_weights_is_named(tmp_path, kind: str, convert) -> None:
    state = {key: convert(value) for key, value in small().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: sft\.weight is {kind}, expected a dense tensor of float16"):
        ditn.load(tmp_path / "a.pth")
    if kind.startswith(("float", "int")):
        save_file(state, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=rf"a\.safetensors: \S+ is {kind}, expected a dense tensor"):
            ditn.load(tmp_path / "a.safetensors")


def test_damage_anywhere_ends_in_one_kind_of_error(tmp_path) -> None:
    state, random = dict(small(dim=4).state_dict()), np.random.default_rng(0)
    files = [tmp_path / name for name in ("a.pth", "old.pth", "a.safetensors")]
    torch.save({"params": state, "iteration": 3}, files[0])
    torch.save(state, files[1], _use_new_zipfile_serialization=False)
    save_file(state, files[2])
    messages = []
    for number in range(300):
        content = bytearray(files[number % 3].read_bytes())
        for _ in range(random.integers(1, 6)):
            place = int(random.integers(random.choice([len(content), 600])))
            content[place : place + int(random.integers(10))] = random.bytes(int(random.integers(10)))
        path = tmp_path / f"damaged{files[number % 3].suffix}"
        path.write_bytes(content)
        try:
            ditn.load(path)  # what only had other values, finite ones
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all(str(tmp_path / "damaged") in message for message in messages)


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


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_sixteen_bits_cannot_hold_is_not_saved(tmp_path, suffix: str) -> None:
    model, path = small(), tmp_path / f"a{suffix}"
    model.UFONE[0].SALs[0].ffn.project_in.weight[:2, :3] = 65_520  # the first that float16 rounds to infinity
    with pytest.raises(ValueError, match=r"UFONE\.0\.SALs\.0\.ffn\.project_in\.weight has 6 values .* torch\.float16"):
        ditn.save(model, path, dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    ditn.save(model, path, dtype=torch.bfloat16)
    model.UFONE[0].SALs[0].ffn.project_in.weight[:2, :3] = 65_504
    ditn.save(model, path, dtype=torch.float16, overwrite=True)


def test_what_spandrel_takes_for_another_network_is_said_on_saving(tmp_path) -> None:
    """Its class is DITN-Real's, whose files differ in the norms' names alone."""
    with pytest.warns(
        UserWarning, match=r"a\.pth: spandrel .* takes a DITN with LayerNorm .* ditn\.spandrel\.register"
    ):
        ditn.save(small(ditn.DITN_Tiny), tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ditn.save(small(ditn.DITN_Tiny), tmp_path / "a.safetensors")
        ditn.save(small(ditn.DITN_Real), tmp_path / "b.pth")


def test_shipped_weights_load_by_name() -> None:
    assert ditn.models()
    for name in ditn.models():
        model = ditn.load(name)
        assert model(torch.rand(1, 3, 8, 8)).isfinite().all()
