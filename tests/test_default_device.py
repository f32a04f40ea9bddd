# SPDX-License-Identifier: Apache-2.0
"""`torch.set_default_device("cuda")` in a program breaks and slows nothing. Tried with "meta" as the default, whose
tensors hold nothing: what this package makes without naming a device would be lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import small, without_guard
from torch.overrides import BaseTorchFunctionMode

import ditn
from ditn.export.export import export
from ditn_kernels import Prepared, layer_norm2d
from ditn_kernels._prepared import is_plain
from ditn_kernels.backends.native import _libraries

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 44, 4), np.uint8)


@pytest.mark.parametrize("model", ["auto", "ditn-tiny-x3"])
def test_pictures_are_the_same(model: str) -> None:
    upscaler = ditn.Upscaler(model, scale=3, device="cpu", tile=24)
    expected = upscaler(PIXELS)
    with torch.device("meta"):
        assert np.array_equal(ditn.Upscaler(model, scale=3, device="cpu", tile=24)(PIXELS), expected)


def test_a_repair_is_the_same() -> None:
    model = small()
    with torch.no_grad():
        model.upsample[0].bias.fill_(3)
    with torch.device("meta"), pytest.warns(RuntimeWarning, match="nothing to do with the image"):
        repaired = ditn.Upscaler(model, device="cpu")(PIXELS)
    with pytest.warns(RuntimeWarning, match="nothing to do with the image"):
        assert np.array_equal(repaired, ditn.Upscaler(model, device="cpu")(PIXELS))


def test_batches_of_nothing_stay_where_they_are() -> None:
    upscaler, batch = without_guard(small()), torch.empty(0, 3, 8, 8)
    with torch.device("meta"):
        assert (result := upscaler(batch)).device.type == "cpu"
    assert result.shape == (0, 3, 16, 16)


def test_the_library_loads() -> None:
    expected = _libraries.why_missing()
    with torch.device("meta"):
        assert _libraries.why_missing.__wrapped__() == expected


@pytest.mark.parametrize("norm", ["tanh", "layernorm"])
def test_exported_files_are_checked(norm: str, tmp_path) -> None:
    model = small(norm=norm)
    with torch.device("meta"):
        assert export(model, tmp_path / "a.pt2", format="pt2").error < 1e-5  # float32, some layers deep


def test_kernels_run_as_fast_as_without() -> None:
    """Prepared, and in CUDA graphs, unless another mode looks on."""
    x, weight = torch.rand(1, 7, 3, 3), torch.rand(7)
    expected = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (7,), weight, weight, 1e-5).permute(0, 3, 1, 2)
    prepared = Prepared(layer_norm2d, weight, weight)
    with torch.device("cpu"), torch.device("meta"):
        with BaseTorchFunctionMode():
            assert not is_plain((x,))
            torch.testing.assert_close(prepared(x), expected)
        assert not prepared._decided  # it was called as usual
        assert is_plain((x,))
        torch.testing.assert_close(prepared(x), expected)
    assert prepared._decided
