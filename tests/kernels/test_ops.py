# SPDX-License-Identifier: Apache-2.0
"""Every operator, from the registry: definitions against independent formulas, gradients, registration."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

import ditn_kernels
from benchmarks.oracle import published
from benchmarks.oracle.tolerance import assert_as_good
from ditn_kernels import REGISTRY, Op
from ditn_kernels._axes import is_map
from ditn_kernels._dispatch import reasons_against
from ditn_kernels._op import Sample
from ditn_kernels._tolerance import DRAWS_OF_A_NUMBER
from ditn_kernels.backends.triton._dispatch import interpreted

pytestmark = pytest.mark.usefixtures("device")
CASES = [pytest.param(op, sample, id=f"{op.name}-{sample.name}") for op in REGISTRY.values() for sample in op.samples]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def arguments(op: Op, sample, dtype: torch.dtype) -> tuple[list[Tensor], dict]:
    named = op.inputs(sample, dtype=dtype)
    return [named[name] for name in op.axes], dict(sample.options)


def restated(name: str, args: dict) -> Tensor:
    """The operators' formulas in terms of the layers of `benchmarks.oracle.published`: NCHW, [out, in] weights."""

    def pointwise(weight: str, bias: str) -> dict[str, Tensor]:
        return {"weight": args[weight].t()[..., None, None], "bias": args[bias]}

    def depthwise(weight: str, bias: str) -> dict[str, Tensor]:
        return {"weight": args[weight].permute(2, 0, 1)[:, None], "bias": args[bias]}

    def full(weight: str, bias: str) -> dict[str, Tensor]:
        return {"weight": args[weight].permute(3, 2, 0, 1), "bias": args[bias]}

    def state(**layers: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{key}.{part}": tensor for key, layer in layers.items() for part, tensor in layer.items()}

    def normed(x: Tensor) -> Tensor:
        if args["norm"] == "tanh":
            return torch.tanh(x)
        if args["norm"] == "layernorm":
            one, zero = torch.ones(x.shape[1]).to(x), torch.zeros(x.shape[1]).to(x)
            return published.norm({"k.norm1.weight": one, "k.norm1.bias": zero}, "k", 1, x)
        return x

    def per_patch(x: Tensor, function) -> Tensor:
        if not x.numel() or not args.get("patch_size"):
            return function(x)
        return published.patchwise(x, args["patch_size"], function)

    match name:
        case "tanh_affine":
            return F.conv2d(torch.tanh(args["x"]), **pointwise("weight", "bias"))
        case "layer_norm2d":
            layer = {"k.norm1.weight": args["weight"], "k.norm1.bias": args["bias"]}
            return published.norm(layer, "k", 1, args["x"])
        case "image_head":
            return F.conv2d(args["image"], **full("weight", "bias"), padding=1)
        case "image_tail":
            deep = F.conv2d(args["x"], **full("body_weight", "body_bias"), padding=1) + args["skip"]
            return F.pixel_shuffle(F.conv2d(deep, **full("up_weight", "up_bias"), padding=1), args["upscale"])
        case "inner_patch_attention":
            layers = state(project_out=pointwise("out_weight", "out_bias"))
            layers |= {"qkv.weight": args["qkv_weight"].t(), "qkv.bias": args["qkv_bias"]}
            layers = {f"k.{key}": tensor for key, tensor in layers.items()} | {"k.temperature": args["temperature"]}
            return per_patch(args["x"], lambda x: x + published.attention(layers, "k", normed(x)))
        case "gated_ffn":
            layers = state(
                project_in=pointwise("in_weight", "in_bias"),
                dwconv=depthwise("dw_weight", "dw_bias"),
                project_out=pointwise("out_weight", "out_bias"),
            )
            layers = {f"k.{key}": tensor for key, tensor in layers.items()}
            return per_patch(args["x"], lambda x: x + published.feed_forward(layers, "k", normed(x)))
        case "dilated_gate":
            layers = {
                "proj_first.0": pointwise("in_weight", "in_bias"),
                "DConvs.0": depthwise("dw5_weight", "dw5_bias"),
                "DConvs.1": depthwise("dw7_weight", "dw7_bias"),
                "DConvs.2": pointwise("mix_weight", "mix_bias"),
                "proj_last.0": pointwise("out_weight", "out_bias"),
            }
            layers = {f"k.{key}": tensor for key, tensor in state(**layers).items()} | {
                "k.scale": torch.ones(1).to(args["x"])
            }
            return args["x"] + published.gate(layers, "k", normed(args["x"]))
        case "inner_patch_stage":
            attention, ffn = REGISTRY["inner_patch_attention"], REGISTRY["gated_ffn"]
            return chained(args, (attention, 5), (ffn, 6))
        case "spatial_stage":
            return chained(args | {"patch_size": 0}, (REGISTRY["dilated_gate"], 10), (REGISTRY["gated_ffn"], 6))
    raise AssertionError(f"no independent formula for {name}: write one")


def chained(args: dict, *parts: tuple[Op, int]) -> Tensor:
    weights = [value for value in args.values() if isinstance(value, Tensor)][1:]
    options = {name: args[name] for name in ("norm", "patch_size")}
    x = args["x"]
    for layer in range(weights[0].shape[0]):
        start = 0
        for op, count in parts:
            names = list(op.axes)[1:]
            values = (weight[layer] for weight in weights[start : start + count])
            x = restated(op.name, {"x": x, **dict(zip(names, values, strict=True)), **options})
            start += count
    return x


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_definition_is_the_published_formula(op: Op, sample) -> None:
    args = op.inputs(sample, dtype=torch.float64)
    expected = restated(op.name, args)
    # Two float64 evaluations in another order of summation over at most 1,152 terms.
    torch.testing.assert_close(op.reference(**args), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "sample"), CASES)
def test_backends_forward(op: Op, sample, dtype: torch.dtype) -> None:
    check_forward(op, sample, dtype, compiled_backends(op))


def compiled_backends(op: Op) -> list[str]:
    """Without Triton where it is interpreted, which is slow: test_interpreted.py has it."""
    return [backend for backend in op.backends if backend != "triton" or not interpreted()]


def check_forward(op: Op, sample, dtype: torch.dtype, backends: list[str]) -> None:
    """By each of the backends that can."""
    args, options = arguments(op, sample, dtype)
    exact = op.reference(*(arg.double() for arg in args), **options)
    plain = op.reference(*args, **options)
    for backend in backends:
        if reasons_against(op, backend, op.named(args, options)):
            continue
        result = op(*args, **options, backend=backend)
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert_as_good(result, exact, plain, op.atol_of_max[dtype], f"{op.name} {sample.name} {backend}")


def gradients_by(op: Op, backend: str, grad: Tensor, args: list[Tensor], options: dict) -> tuple[Tensor, ...]:
    overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
    return overload(grad, *args, *options.values(), backend=backend)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "sample"), [case for case in CASES if case.values[0].backward])
def test_backends_backward(op: Op, sample, dtype: torch.dtype) -> None:
    if not sample.axes["B"]:
        pytest.skip("an empty batch has no gradient to compare; shapes are tested by opcheck")
    check_backward(op, sample, dtype, compiled_backends(op))


def check_backward(op: Op, sample, dtype: torch.dtype, backends: list[str]) -> None:
    """By each of the backends that can, against float64 autograd through the definition, which is tied to the published
    formula above."""
    args, options = arguments(op, sample, dtype)
    backends = [name for name in backends if not reasons_against(op, name, op.named(args, options), backward=True)]

    def autograd(dtype: torch.dtype, grad: Tensor, args: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [arg.to(dtype).requires_grad_() for arg in args]
        found = torch.autograd.grad(op.reference(*leaves, **options), leaves, grad.to(dtype), allow_unused=True)
        return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))

    # How well one number is hit is chance: of a gradient that is no more than that, several draws are compared as one.
    single = [arg.numel() == 1 for arg in args]
    found: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in ("exact", "plain", *backends)}
    for seed in range(DRAWS_OF_A_NUMBER if any(single) else 1):
        inputs = op.inputs(sample, dtype=dtype, seed=seed)
        args = [inputs[name] for name in op.axes]
        shape, generator = op.reference(*args, **options).shape, torch.Generator().manual_seed(seed)
        grad = torch.randn(shape, generator=generator, device="cpu").to(args[0])
        found["exact"].append(autograd(torch.float64, grad, args))
        found["plain"].append(autograd(dtype, grad, args))
        for name in backends:
            found[name].append(gradients_by(op, name, grad, args, options))
    for backend in backends:
        for i, name in enumerate(op.axes):
            draws = None if single[i] else 1
            result, exact, plain = (
                torch.stack([draw[i] for draw in found[of][:draws]]) for of in (backend, "exact", "plain")
            )
            assert result.dtype == dtype
            assert_as_good(result, exact, plain, op.atol_of_max[dtype], f"{op.name} {sample.name} {backend} d{name}")


@pytest.mark.slow
@pytest.mark.parametrize("op", [op for op in REGISTRY.values() if op.backward], ids=lambda op: op.name)
def test_backward_is_deterministic(op: Op, device: torch.device) -> None:
    """The same bits twice, though threads and programs share the sums over pixels. (Plain PyTorch promises nothing.)"""
    for backend in op.backends:
        args, options = arguments(op, sample_for(op, backend), torch.float32)
        grad = torch.randn_like(op.reference(*args, **options))
        if backend == "torch" or reasons_against(op, backend, op.named(args, options), backward=True):
            continue
        first, second = (gradients_by(op, backend, grad, args, options) for _ in range(2))
        assert all(map(torch.equal, first, second)), f"{op.name} {backend}"


def sample_for(op: Op, backend: str) -> Sample:
    """Triton's interpreter is slow and takes one program after the other: the smallest map does."""
    if backend != "triton" or not interpreted():
        return op.samples[0]
    filled = [sample for sample in op.samples if sample.axes["B"]]
    return min(filled, key=lambda sample: sample.axes["C"] * sample.axes["H"] * sample.axes["W"])


@pytest.mark.parametrize("op", [op for op in REGISTRY.values() if op.backward], ids=lambda op: op.name)
def test_gradcheck(op: Op) -> None:
    """Finite differences in float64, of the registered operator with its hand-written backward."""
    axes = {"B": 1, "C": 3, "D": 4, "E": 2, "N": 3, "H": 4, "W": 4}
    options = {"norm": "tanh", "patch_size": 4, "upscale": 2}
    options = {name: options[name] for name in op.samples[0].options}
    for norm in ("tanh", "layernorm", "none") if "norm" in options else (None,):
        if norm:
            options["norm"] = norm
        sample = type(op.samples[0])("small", axes, dict(options))
        args = op.inputs(sample, dtype=torch.float64)
        leaves = [args[name].requires_grad_() for name in op.axes]
        assert torch.autograd.gradcheck(
            lambda *a, o=dict(options): op(*a, **o, backend="torch"), leaves, nondet_tol=1e-12
        )


@pytest.mark.parametrize(
    ("op", "sample"),
    [case for case in CASES if case.values[1] in case.values[0].samples[:1] or case.values[1].name == "empty"],
)
def test_opcheck(op: Op, sample) -> None:
    args, options = arguments(op, sample, torch.float32)
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    inputs = [arg.requires_grad_(op.backward is not None) for arg in args]
    if op.backward is not None:
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.ditn, op.name).default, (*inputs, *options.values()), test_utils=tests)
    if op.backward is not None:
        grad = torch.randn_like(op.reference(*args, **options)).detach()
        overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
        detached = [arg.detach() for arg in args]
        torch.library.opcheck(overload, (grad, *detached, *options.values()), test_utils=tests[:2])


@pytest.mark.parametrize("op", REGISTRY.values(), ids=lambda op: op.name)
def test_strides_do_not_matter(op: Op) -> None:
    for backend in op.backends:
        args, options = arguments(op, sample_for(op, backend), torch.float32)
        expected = op(*args, **options)
        if reasons_against(op, backend, op.named(args, options)):
            continue
        strided = [_strided(arg) for arg in args]
        contiguous = [arg.contiguous() for arg in args]
        for variant in (strided, contiguous):
            # Another memory layout may take another order of summation: float32 rounding, 2^-23 of the largest, x 16.
            bound = 16 * 2.0**-23 * float(expected.abs().max())
            torch.testing.assert_close(op(*variant, **options, backend=backend), expected, rtol=0, atol=bound)


def _strided(tensor: Tensor) -> Tensor:
    """The same values as every other element of a larger buffer, the rest of which is NaN."""
    buffer = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan, dtype=tensor.dtype)
    buffer[..., ::2] = tensor
    return buffer[..., ::2]


def test_expanded_input_is_read_right() -> None:
    args, options = arguments(ditn_kernels.gated_ffn, ditn_kernels.gated_ffn.samples[1], torch.float32)
    one = args[0][:, :1].expand_as(args[0])
    torch.testing.assert_close(
        ditn_kernels.gated_ffn(one, *args[1:], **options),
        ditn_kernels.gated_ffn(one.contiguous(), *args[1:], **options),
    )


def test_hand_computed_gated_ffn() -> None:
    """One channel, one pixel: d = 2 tanh(0.5) + 1 for both halves, y = x + 3 gelu(d) d + 0.25."""
    x = torch.tensor(0.5, dtype=torch.float64).reshape(1, 1, 1, 1)
    centre = torch.zeros(3, 3, 2, dtype=torch.float64)
    centre[1, 1] = 1
    centre[0, 0] = 100  # outside the map: must not count

    def full(value: float, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.float64)

    y = ditn_kernels.gated_ffn(
        x, full(2, 1, 2), full(1, 2), centre, full(0, 2), full(3, 1, 1), full(0.25, 1), "tanh", 0
    )
    d = 2 * np.tanh(0.5) + 1
    gelu = d * 0.97285  # the normal distribution function at d = 1.92423, by table
    assert float(y) == pytest.approx(0.5 + 3 * gelu * d + 0.25, abs=1e-3)


def test_wrong_arguments_are_named() -> None:
    args, options = arguments(ditn_kernels.gated_ffn, ditn_kernels.gated_ffn.samples[0], torch.float32)
    wrong = [*args[:5], torch.zeros(119, 60), args[6]]
    with pytest.raises(ValueError, match=r"gated_ffn: out_weight has shape \[119, 60\], expected \[E=120, C=60\]"):
        ditn_kernels.gated_ffn(*wrong, **options)
    with pytest.raises(TypeError, match=r"in_bias is torch.float64 .* x is torch.float32"):
        ditn_kernels.gated_ffn(*args[:2], args[2].double(), *args[3:], **options)
    with pytest.raises(ValueError, match="norm is 'batch'"):
        ditn_kernels.gated_ffn(*args, "batch", 8)
    with pytest.raises(ValueError, match="16x24 is not a grid of 7-pixel patches"):
        ditn_kernels.gated_ffn(*args, "tanh", 7)


NO_SENSE = [
    ("image_tail", {}, {"upscale": 0}, "upscale is 0, must be 1 or more"),
    ("image_tail", {}, {"upscale": -2}, "upscale is -2, must be 1 or more"),
    ("image_tail", {}, {"upscale": 5}, "D is 48, must be a positive multiple of upscale**2 = 25"),
    ("image_tail", {}, {"upscale": 16}, "D is 48, must be a positive multiple of upscale**2 = 256"),
    ("image_tail", {"D": 0}, {}, "D is 0, must be a positive multiple of upscale**2 = 16"),
    ("gated_ffn", {}, {"patch_size": -8}, "patch_size is -8, must be 1 or more, or 0 for the whole map"),
    ("gated_ffn", {"E": 0}, {"patch_size": 0}, "E is 0, must be 1 or more"),
    ("gated_ffn", {"E": 0}, {}, "E is 0, must be 1 or more"),
    ("inner_patch_attention", {}, {"patch_size": 0}, "patch_size is 0, must be 1 or more"),
    ("inner_patch_attention", {}, {"patch_size": -8}, "patch_size is -8, must be 1 or more"),
    ("inner_patch_stage", {}, {"patch_size": 0}, "patch_size is 0, must be 1 or more"),
    ("inner_patch_stage", {"E": 0}, {}, "E is 0, must be 1 or more"),
    ("spatial_stage", {"E": 0}, {}, "E is 0, must be 1 or more"),
]


def without_sense(name: str, axes: dict, options: dict) -> tuple[Op, list]:
    """An operator and its arguments for its first sample, but for these sizes and options."""
    op = REGISTRY[name]
    first = op.samples[0]
    return op, list(op.inputs(Sample("no sense", first.axes | axes, first.options | options)).values())


@pytest.mark.parametrize(("name", "axes", "options", "message"), NO_SENSE)
def test_values_without_sense_are_refused_alike(name: str, axes: dict, options: dict, message: str) -> None:
    """By every backend, and where none is chosen: prepared, or in a trace that knows shapes only."""
    op, args = without_sense(name, axes, options)
    maps = sum(map(is_map, op.axes.values()))
    message = f"^{re.escape(f'{name}: {message}')}"
    for backend in (None, *op.backends):
        with pytest.raises(ValueError, match=message):
            op(*args, backend=backend)
    with pytest.raises(ValueError, match=message):
        ditn_kernels.Prepared(op, *args[maps:])(*args[:maps])
    with pytest.raises(ValueError, match=message):
        op(*(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args))


def test_integers_are_refused() -> None:
    args, options = arguments(ditn_kernels.gated_ffn, ditn_kernels.gated_ffn.samples[0], torch.float32)
    for backend in (None, *ditn_kernels.gated_ffn.backends):
        with pytest.raises(TypeError, match=r"gated_ffn: x is torch.int32, all tensors must be floating-point"):
            ditn_kernels.gated_ffn(*(arg.int() for arg in args), **options, backend=backend)


def test_second_derivative_is_refused_clearly() -> None:
    args, options = arguments(ditn_kernels.tanh_affine, ditn_kernels.tanh_affine.samples[1], torch.float32)
    leaves = [arg.requires_grad_() for arg in args]
    (grad,) = torch.autograd.grad(ditn_kernels.tanh_affine(*leaves, **options).sum(), leaves[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="fused=False"):
        grad.sum().backward()


def test_vmap_is_refused_clearly() -> None:
    for op in (ditn_kernels.tanh_affine, ditn_kernels.spatial_stage):
        args, options = arguments(op, op.samples[1], torch.float32)
        images = torch.stack([args[0], args[0]])
        with pytest.raises(NotImplementedError, match=f"{op.name} cannot be mapped by torch.func.vmap"):
            torch.func.vmap(lambda x, op=op, args=args, options=options: op(x, *args[1:], **options))(images)


@pytest.mark.parametrize("op", REGISTRY.values(), ids=lambda op: op.name)
def test_forward_mode_is_refused_clearly(op) -> None:
    """The tangent would be dropped without a word: of the result none would be left, or zero."""
    args, options = arguments(op, op.samples[1], torch.float64)

    def of(x: Tensor) -> Tensor:
        return op(x, *args[1:], **options)

    with pytest.raises(NotImplementedError, match=f"{op.name} has no derivative in forward mode"):
        torch.func.jvp(of, (args[0],), (args[0],))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="fused=False"):
        of(forward_ad.make_dual(args[0], args[0]))
    with forward_ad.dual_level():  # without a tangent, nothing is to be refused
        torch.testing.assert_close(of(args[0]), op.reference(*args, **options))


def test_stage_gives_gradients_through_its_layers() -> None:
    op = ditn_kernels.spatial_stage
    args, options = arguments(op, op.samples[2], torch.float64)
    leaves = [arg.requires_grad_() for arg in args]
    got = torch.autograd.grad(op(*leaves, **options).sum(), leaves)
    want = torch.autograd.grad(op.reference(*leaves, **options).sum(), leaves)
    for name, a, b in zip(op.axes, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=f"gradient of {name}")


def test_costs_add_up_to_the_networks() -> None:
    """DITN-Real x4 after folding takes 411,780 multiply-adds per input pixel, counted by hand layer by layer."""
    axes = {"B": 1, "H": 8, "W": 8, "N": 3, "C": 60, "E": 120, "D": 48, "L": 4}
    macs = {name: op.macs(axes) / 64 for name, op in REGISTRY.items()}
    assert macs["inner_patch_attention"] + macs["gated_ffn"] == 45_360
    assert macs["dilated_gate"] + macs["gated_ffn"] == 42_600
    names = ("image_head", "inner_patch_stage", "spatial_stage", "image_tail")
    assert sum(macs[name] for name in names) == 411_780


def test_cost_counts_each_tensor_once() -> None:
    op = ditn_kernels.tanh_affine
    args = op.inputs(type(op.samples[0])("one", {"B": 1, "C": 2, "D": 3, "H": 4, "W": 5}))
    cost = op.cost(args)
    assert (cost.bytes, cost.macs) == (4 * (2 * 20 + 2 * 3 + 3 + 3 * 20), 2 * 3 * 20)
