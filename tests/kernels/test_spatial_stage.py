# SPDX-License-Identifier: Apache-2.0
"""spatial_stage in CUDA C++: its layers' kernels by one call. Without a GPU, on the host (test_cuda.py)."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from cuda_host import STAGE, HostKernels
from torch import Tensor

from benchmarks.oracle.tolerance import assert_as_good
from ditn_kernels import REGISTRY
from ditn_kernels._op import Sample
from ditn_kernels.backends.native import _dispatch as native
from ditn_kernels.backends.native import _hopper

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed")
OP = REGISTRY["spatial_stage"]
AXES = STAGE.axes


def arguments(norm: str = "tanh", dtype: torch.dtype = torch.float16, **axes: int) -> dict:
    return OP.inputs(Sample("", AXES | axes, {"norm": norm}), dtype=dtype)


def links(args: dict) -> list[tuple[str, Callable[[Tensor], dict]]]:
    """Name and arguments, but for x, of each layer."""
    _, *rest = OP.structured(args.values())
    assert OP.decomposition is not None
    return [(op.name, lambda x, op=op, given=given: op.named([x, *given])) for op, given in OP.decomposition(*rest)]


@pytest.mark.parametrize(
    ("norm", "dtype", "hopper", "axes"),
    [
        ("tanh", torch.float16, False, {}),
        pytest.param("layernorm", torch.float32, False, {"B": 2, "C": 66, "E": 7, "W": 5}, marks=pytest.mark.slow),
        pytest.param("none", torch.float16, False, {"L": 3, "C": 61, "E": 33, "W": 3}, marks=pytest.mark.slow),
        ("tanh", torch.float16, True, {"L": 3}),
        pytest.param("layernorm", torch.bfloat16, True, {"B": 2, "C": 64, "E": 40, "W": 5}, marks=pytest.mark.slow),
        # More channels than sm_90a's kernels take.
        pytest.param("tanh", torch.float16, True, {"C": 66, "E": 9, "H": 2, "W": 3}, marks=pytest.mark.slow),
    ],
)
def test_it_is_its_layers_kernels(norm: str, dtype: torch.dtype, hopper: bool, axes: dict[str, int]) -> None:
    """The same launches as the layers one by one, hence the same bits; and as good as plain PyTorch."""
    kernels, args = HostKernels(800, hopper=hopper), arguments(norm, dtype, **axes)
    y = kernels(OP, args)
    launches, x = kernels.launches(), args["x"]
    for name, given in links(args):
        x = kernels(REGISTRY[name], given(x))
        assert kernels.launches() == launches[: len(kernels.launches())]
        launches = launches[len(kernels.launches()) :]
    assert not launches
    assert torch.equal(y, x)
    exact = OP.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    assert_as_good(y, exact, OP.reference(*args.values()), OP.atol_of_max[dtype], OP.name)


@pytest.mark.parametrize("hopper", [pytest.param(False, marks=pytest.mark.slow), True])
def test_layers_share_memory(hopper: bool) -> None:
    kernels = HostKernels(800, hopper=hopper)
    kernels(OP, arguments(L=1))
    one = kernels.scratch()
    kernels(OP, arguments(L=3))
    assert kernels.scratch() == one > arguments()["x"].nbytes


def test_no_layers_and_no_pixels() -> None:
    kernels = HostKernels(800)
    args = arguments(L=0)
    assert torch.equal(kernels(OP, args), args["x"])
    kernels(OP, arguments(B=0))
    assert not kernels.launches()


@pytest.mark.parametrize("hopper", [pytest.param(False, marks=pytest.mark.slow), True])
def test_weights_that_stay_packed(hopper: bool) -> None:
    """Those of each layer are its own. The second call, of a map of another size, launches nothing to pack them."""
    kernels, args = HostKernels(800, hopper=hopper), arguments()
    other = args | {"x": arguments(H=17)["x"]}
    expected = kernels(OP, other)
    kernels.library.keep_packed_weights(True)
    try:
        kernels(OP, args)
        assert torch.equal(kernels(OP, other), expected)
        assert len(kernels.launches()) == 3 * AXES["L"]  # near, far, FFN
    finally:
        kernels.library.keep_packed_weights(False)


def test_what_it_was_proved_with(monkeypatch) -> None:
    """Its layers' kernels, which are turned off by their own proofs only."""
    kernels, device = HostKernels(800, hopper=True), torch.device("cuda")
    monkeypatch.setattr(_hopper, "_library", lambda device: kernels.library)
    monkeypatch.setattr(native, "digest", lambda path: "0")
    backend = native.Cuda()
    assert backend.identity(OP, device)["kernels"] == "sm_90a, sm_90a"
    assert not backend.fall_back(OP, device, torch.float16)
    try:
        assert backend.fall_back(REGISTRY["gated_ffn"], device, torch.float16)
        assert backend.identity(OP, device)["kernels"] == "sm_90a, all chips"
        assert not _hopper.serves(OP.name, device)
        with _hopper.without([OP.name], device):
            assert not _hopper.serves("dilated_gate", device)
        assert _hopper.serves("dilated_gate", device)
    finally:
        _hopper.turn("gated_ffn", device, on=True)
