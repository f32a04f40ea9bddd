# SPDX-License-Identifier: Apache-2.0
"""Which backend runs, how it is forced, and what is said when it cannot."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

import ditn_kernels
from benchmarks.oracle.tolerance import assert_as_good
from ditn_kernels import REGISTRY, BackendError, explain, use_backend
from ditn_kernels import _dispatch as dispatch
from ditn_kernels._op import Op, Sample
from ditn_kernels._support import Support
from ditn_kernels.backends import BACKENDS
from ditn_kernels.backends.native import _hopper, _libraries, _limits
from ditn_kernels.backends.native._libraries import runs_on

OP = ditn_kernels.tanh_affine


class FakeBackend:
    """A backend for every operator, which computes the definition and then `spoil`s it."""

    def __init__(self, spoil=lambda y: y, reasons: tuple[str, ...] = ()) -> None:
        self.spoil, self.reasons, self.calls = spoil, reasons, 0

    def missing(self, op: Op, device: torch.device, *, backward: bool, dtype: torch.dtype) -> list[str]:
        return list(self.reasons)

    def auto_selectable(self, device: torch.device) -> bool:
        return True

    def kernel(self, op: Op, *, backward: bool):
        function = op.backward if backward else op.reference

        def run(*args):
            self.calls += 1
            result = function(*args)
            return tuple(map(self.spoil, result)) if backward else self.spoil(result)

        return run


@pytest.fixture
def install(monkeypatch):
    """Put a backend first in every operator's table, for one test."""

    def put(backend: FakeBackend, support: Support | None = None) -> FakeBackend:
        monkeypatch.setitem(dispatch.BACKENDS, "fake", backend)
        support = support or Support(backward=(torch.float32, torch.float64))
        for op in REGISTRY.values():
            monkeypatch.setitem(vars(op), "backends", {"fake": support, **op.backends})
        return backend

    monkeypatch.delenv("DITN_BACKEND", raising=False)
    return put


def call(**options):
    return OP(*OP.inputs(OP.samples[0]).values(), **options)


def test_the_first_that_can_run_is_chosen(install) -> None:
    fake = install(FakeBackend())
    call()
    assert fake.calls == 1
    assert explain(OP, *OP.inputs(OP.samples[0]).values()).chosen == "fake"


def test_argument_over_context_over_environment(install, monkeypatch) -> None:
    fake = install(FakeBackend())
    with use_backend("torch"):
        call()
        assert fake.calls == 0
        call(backend="fake")
        assert fake.calls == 1
        with use_backend(None):
            call()
        assert fake.calls == 2
    monkeypatch.setenv("DITN_BACKEND", "torch")
    call()
    assert fake.calls == 2
    with use_backend("fake"):
        call()
    assert fake.calls == 3


def test_every_reason_is_returned(install) -> None:
    support = Support(devices=("cuda",), dtypes=(torch.float16,), max_channels=32)
    install(FakeBackend(reasons=("is not built",)), support)
    reasons = explain(OP, *OP.inputs(OP.samples[0]).values()).refusals["fake"]
    assert reasons == (
        "is not built",
        "runs on cuda, the input is on cpu",
        "computes float16, the input is float32",
        "takes at most 32 channels, the input has 60",
    )


def test_gradients_may_take_fewer_channels() -> None:
    support = Support(max_channels=64, backward=(torch.float32,), max_channels_backward_of={torch.float32: 32})
    args = OP.inputs(OP.samples[0])
    assert support.why_not(args, backward=False) == []
    assert support.why_not(args, backward=True) == ["takes at most 32 channels, the input has 60"]


def test_a_backend_is_for_a_range_of_chips() -> None:
    support = Support(min_capability=(9, 0), before_capability=(12, 0))
    assert support.why_not_on((9, 0), backward=False) == support.why_not_on((10, 3), backward=False) == []
    assert support.why_not_on((8, 9), backward=False) == ["needs compute capability (9, 0), the GPU has (8, 9)"]
    (reason,) = support.why_not_on((12, 0), backward=False)
    assert reason == "is for GPUs before compute capability (12, 0), this one has (12, 0)"


def test_forced_and_impossible_is_an_error_with_the_reasons(install) -> None:
    install(FakeBackend(reasons=("is not built",)), Support(devices=("cuda",)))
    with pytest.raises(BackendError, match="tanh_affine: fake is not built, runs on cuda, the input is on cpu"):
        call(backend="fake")
    with pytest.raises(BackendError, match="'cudda' is no backend; there are"):
        call(backend="cudda")
    with pytest.raises(BackendError, match="'cudda' is no backend"), use_backend("cudda"):
        pass


def test_a_predicate_that_fails_is_a_bug_and_shows(install) -> None:
    class Broken(FakeBackend):
        def missing(self, op: Op, device: torch.device, *, backward: bool, dtype: torch.dtype) -> list[str]:
            raise ZeroDivisionError

    install(Broken())
    with pytest.raises(ZeroDivisionError):
        call()


def test_backward_is_chosen_by_itself(install) -> None:
    fake = install(FakeBackend(), Support())
    leaves = [t.requires_grad_() for t in OP.inputs(OP.samples[0]).values()]
    OP(*leaves).sum().backward()
    assert fake.calls == 1  # forward only: it has no backward kernel
    assert explain(OP, *leaves, backward=True).refusals["fake"] == ("has no backward kernel",)
    with use_backend("fake"), pytest.raises(BackendError, match="tanh_affine backward: fake has no backward kernel"):
        OP(*leaves).sum().backward()


def test_a_forced_backend_reaches_a_compiled_graph(install) -> None:
    fake = install(FakeBackend())
    args = OP.inputs(OP.samples[0]).values()
    compiled = torch.compile(OP, fullgraph=True, backend="aot_eager")
    compiled(*args)
    calls = fake.calls
    with use_backend("torch"):
        compiled(*args)
    assert fake.calls == calls
    compiled(*args)
    assert fake.calls == calls + 1


@pytest.mark.parametrize("op", REGISTRY.values(), ids=lambda op: op.name)
def test_a_sabotaged_backend_is_caught(op: Op, install) -> None:
    """The comparison that the operator tests use must see one wrong constant: 0.2 % in half of the channels."""

    def spoil(y):
        y = y.clone()
        y[..., ::2] *= 1.002
        return y

    install(FakeBackend(spoil))
    args = op.inputs(op.samples[0])
    exact = op.reference(*op.inputs(op.samples[0], dtype=torch.float64).values())
    plain = op.reference(*args.values())
    with pytest.raises(AssertionError, match="is allowed"):
        assert_as_good(op(*args.values(), backend="fake"), exact, plain, op.atol_of_max[torch.float32], op.name)


def test_plain_pytorch_on_a_gpu_warns_once(monkeypatch) -> None:
    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.setattr(dispatch, "_warned", set())
    refusals = {"triton": ["is not installed"]}
    with pytest.warns(RuntimeWarning, match="tanh_affine runs as plain PyTorch on the GPU: triton is not installed"):
        dispatch._warn_if_slow(OP, {"x": OnGpu()}, refusals)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch._warn_if_slow(OP, {"x": OnGpu()}, refusals)


def test_prepared_operators_keep_few_decisions(monkeypatch) -> None:
    """Images of ever other sizes: results stay right, an option that was left out has its default, and what is kept
    does not grow."""
    monkeypatch.setattr("ditn_kernels._prepared._KEPT", 2)
    weight, bias = torch.rand(7), torch.rand(7)
    prepared = ditn_kernels.Prepared(ditn_kernels.layer_norm2d, weight, bias)
    for height in range(1, 6):
        x = torch.rand(1, 7, height, 3)
        expected = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (7,), weight, bias, 1e-5).permute(0, 3, 1, 2)
        torch.testing.assert_close(prepared(x), expected)
        assert len(prepared._decided) <= 2


def test_the_former_name_of_a_backend_is_accepted(monkeypatch) -> None:
    args = list(OP.inputs(OP.samples[0]).values())
    monkeypatch.setenv("DITN_BACKEND", "cpu")
    assert explain(OP, *args).chosen == explain(OP, *args, backend="cpu").chosen == "cpp"
    with ditn_kernels.use_backend("cpu"):
        assert explain(OP, *args).chosen == "cpp"
    with pytest.raises(BackendError, match="'gpu' is no backend; there are triton, cuda, cpp, torch"):
        explain(OP, *args, backend="gpu")


def test_a_stage_without_a_kernel_runs_as_its_layers(install) -> None:
    fake = install(FakeBackend())
    stage = ditn_kernels.spatial_stage
    args = stage.inputs(stage.samples[1])
    vars(stage)["backends"] = {"torch": Support()}  # undone by `install`
    assert explain(stage, *args.values()).chosen == "layers"
    y = stage(*args.values())
    assert fake.calls == 2 * stage.samples[1].axes["L"]
    torch.testing.assert_close(y, stage.reference(*args.values()), rtol=0, atol=0)


def test_explanations_read_well(install) -> None:
    install(FakeBackend(reasons=("is not built",)))
    text = str(explain(OP, *OP.inputs(OP.samples[0]).values()))
    assert "is not built" in text
    assert "runs this" in text


def test_outputs_are_refused_with_a_reason() -> None:
    op = REGISTRY["image_tail"]
    args = op.inputs(Sample("x8", {"B": 1, "C": 4, "D": 192, "H": 1, "W": 1}, {"upscale": 8}))
    assert Support(max_outputs=192).why_not(args, backward=False) == []
    assert Support(max_outputs=128).why_not(args, backward=False) == [
        "makes at most 128 outputs per pixel, asked for 192"
    ]


def test_chips_are_refused_with_a_reason() -> None:
    support = Support(min_capability=(7, 5), min_capability_backward=(8, 0))
    assert support.why_not_on((7, 0), backward=False) == ["needs compute capability (7, 5), the GPU has (7, 0)"]
    assert support.why_not_on((7, 5), backward=True) == ["needs compute capability (8, 0), the GPU has (7, 5)"]
    for chip, backward in (((7, 5), False), ((8, 0), True)):
        assert support.why_not_on(chip, backward=backward) == []


def test_a_backend_may_be_chosen_automatically_for_less(install) -> None:
    install(FakeBackend(), Support(auto=Support(max_channels=32)))
    for channels in (32, 33):
        args = OP.inputs(Sample("", {**OP.samples[0].axes, "C": channels})).values()
        assert (explain(OP, *args).chosen == "fake") == (channels == 32)
        assert explain(OP, *args, backend="fake").chosen == "fake"


def test_chips_that_a_library_was_compiled_for() -> None:
    """Machine code runs on later chips of its generation, PTX on all later ones."""
    assert all(runs_on(["7.5", "8.0"], chip) for chip in ((7, 5), (8, 0), (8, 9)))
    assert not any(runs_on(["7.5", "8.6"], chip) for chip in ((7, 0), (8, 0), (9, 0)))
    assert all(runs_on(["7.5+PTX"], chip) for chip in ((7, 5), (9, 0), (12, 0)))
    assert not runs_on(["7.5+PTX"], (7, 0))


@pytest.mark.parametrize(
    ("chip", "driver", "reasons"),
    [
        ((8, 9), (13, 0), []),
        ((8, 9), (13, 2), []),
        ((8, 9), (14, 0), []),
        ((7, 5), (13, 0), ["is built for 8.0, 9.0, the GPU is 7.5"]),
        ((8, 9), (12, 8), ["is built with CUDA 13.0, the driver is for CUDA 12.8"]),
    ],
)
def test_chip_and_driver_fit_the_library(chip, driver, reasons, monkeypatch) -> None:
    """Within a major release a driver runs what a newer toolkit built."""
    built = {"architectures": ["8.0", "9.0"], "toolkit": "13.0"}
    monkeypatch.setattr(_libraries, "why_no_cuda", lambda: None)
    monkeypatch.setattr(_libraries, "build_info", lambda: {"cuda": built})
    monkeypatch.setattr(_libraries, "driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: chip)
    assert dispatch.BACKENDS["cuda"].missing(OP, torch.device("cuda"), backward=False) == reasons


def test_a_dtype_may_have_kernels_of_its_own() -> None:
    """They are all that a backend has in it, forward only."""
    own = Support(dtypes=(torch.float64,), max_expanded=31, min_capability=(9, 0), before_capability=(10, 0))
    support = Support(dtypes=(torch.float32,), max_channels=32, forward_in={torch.float64: own})
    op = REGISTRY["gated_ffn"]
    args = op.inputs(Sample("", {"B": 1, "C": 60, "E": 32, "H": 1, "W": 1}, {"norm": "none", "patch_size": 0}))
    wide = {name: value.double() if torch.is_tensor(value) else value for name, value in args.items()}
    assert support.why_not(args, backward=False) == ["takes at most 32 channels, the input has 60"]
    assert support.why_not(wide, backward=False) == ["takes at most 31 hidden channels, asked for 32"]
    assert support.why_not(wide, backward=True)[0] == "has no backward kernel"
    assert support.has_kernel(torch.float64, (9, 0), backward=False)
    assert not support.has_kernel(torch.float64, (10, 0), backward=False)
    assert not support.has_kernel(torch.float64, (9, 0), backward=True)
    assert support.has_kernel(torch.float32, (7, 5), backward=False)


@pytest.mark.parametrize("on", [True, False])
def test_bfloat16_is_hoppers_where_its_kernels_are_on(on: bool, monkeypatch) -> None:
    built = {"architectures": ["9.0"], "toolkit": "13.0"}
    monkeypatch.setattr(_libraries, "why_no_cuda", lambda: None)
    monkeypatch.setattr(_libraries, "build_info", lambda: {"cuda": built})
    monkeypatch.setattr(_libraries, "driver", lambda: (13, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_hopper, "serves", lambda operator, device: on)
    why, device = "has no kernel in bfloat16 but that for 9.0, which is off", torch.device("cuda")
    for name in _limits.CUDA:
        for dtype in (torch.float16, torch.bfloat16, None):
            reasons = BACKENDS["cuda"].missing(REGISTRY[name], device, backward=False, dtype=dtype)
            own = dtype == torch.bfloat16 and name not in ("tanh_affine", "layer_norm2d", "inner_patch_attention")
            assert reasons == ([why] if own and not on else [])


def test_supports_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Support().devices = ("cpu",)  # type: ignore[misc]
