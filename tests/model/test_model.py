# SPDX-License-Identifier: Apache-2.0
"""The network against the records of the official one and against the published formula in float64."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from conftest import CUDA
from networks import MODELS, small
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import ditn
from benchmarks.oracle import published
from ditn.model.config import UPSCALES
from ditn.model.layers import UFONE
from ditn.model.network import pad_to_grid
from ditn_kernels import REGISTRY, map_tensors, use_backend
from ditn_kernels._op import Sample
from ditn_kernels.backends.native import _libraries
from ditn_kernels.backends.triton._dispatch import interpreted

FUSED = pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])


@pytest.fixture
def fused(request) -> Iterator[bool]:
    """Plain PyTorch, the backends that are chosen here, or the Triton kernels, interpreted where there is no GPU."""
    with use_backend("triton" if request.param == "triton" else None):
        yield request.param != "unfused"


# What takes many minutes where Triton's kernels are interpreted.
LONGEST = (pytest.mark.slow, pytest.mark.exhaustive)


def ways(*marks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Every way to run a model; `marks` are those of the Triton kernels, which the interpreter makes slow."""
    triton = pytest.param("triton", marks=marks)
    return pytest.mark.parametrize("fused", ["unfused", "fused", triton], indirect=True)


OFFICIAL_NAMES = {
    "dim": "dim",
    "UFONE_blocks": "ufones",
    "ITL_blocks": "itls",
    "SAL_blocks": "sals",
    "patch_size": "patch_size",
    "upscale": "upscale",
    "bias": "bias",
}


@ways(*LONGEST)
def test_golden_images(shared, fused: bool, request) -> None:
    """All but the two largest where Triton's kernels are interpreted, which takes minutes for each of these."""
    patient = request.node.callspec.params["fused"] != "triton" or not interpreted()
    assert check_golden_images(shared, fused, largest=None if patient else 12_000) == (6 if patient else 4)


@ways(pytest.mark.slow)
def test_smallest_golden_images(shared, fused: bool) -> None:
    """8x8 and 5x23: one patch, and a row of three that had to be padded."""
    assert check_golden_images(shared, fused, largest=400) == 2


def check_golden_images(shared, fused: bool, largest: int | None) -> int:
    """How many were compared; `largest` is a number of values."""
    model = ditn.load(shared / "golden" / "DITN_Real_x4.pth", fused=fused)
    records = load_file(shared / "golden" / "ditn_real_x4.io.safetensors")
    images = {key.removesuffix(".x"): image for key, image in records.items() if key.endswith(".x")}
    chosen = {case: image for case, image in images.items() if largest is None or image.numel() < largest}
    for case, image in chosen.items():
        # The official code itself is within 8.3e-7 in float32.
        torch.testing.assert_close(model(image), records[f"{case}.y"], rtol=0, atol=2e-6, msg=case)
    return len(chosen)


@ways(*LONGEST)
@pytest.mark.parametrize("name", ["random_x2", "random_x3", "random_x4_3ufone_dim48"])
def test_golden_random_networks(shared, name: str, fused: bool) -> None:
    check_golden_network(shared, name, fused)


@ways(pytest.mark.slow)
def test_golden_random_network_of_two_layers(shared, fused: bool) -> None:
    check_golden_network(shared, "random_x2_bias_patch4", fused)


def check_golden_network(shared, name: str, fused: bool) -> None:
    path = shared / "golden" / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        fields = {OFFICIAL_NAMES[key]: eval(value) for key, value in file.metadata().items()}
    records = load_file(path)
    model = ditn.DITN_Real(**fields, fused=fused).eval().requires_grad_(False)
    model.load_state_dict({key.removeprefix("state."): t for key, t in records.items() if key.startswith("state.")})
    for case in ("a", "b"):
        expected = records[f"{case}.y"]
        bound = 2e-6 * max(1, float(expected.abs().max()))
        torch.testing.assert_close(model(records[f"{case}.x"]), expected, rtol=0, atol=bound)


# Of whole chains of layers, which are golden_images' as well, and of all others.
CHAINS = ("UFONE.0", "UFONE.0.ITLs", "UFONE.0.SALs")


@ways(*LONGEST)
def test_golden_layers(shared, fused: bool) -> None:
    check_golden_modules(shared, fused, lambda name: name not in CHAINS)


@ways(*LONGEST)
def test_golden_chains(shared, fused: bool) -> None:
    check_golden_modules(shared, fused, lambda name: name in CHAINS)


def check_golden_modules(shared, fused: bool, chosen: Callable[[str], bool]) -> None:
    """Module by module. Layers hold their norm, so the records inside a layer go through operators without one."""
    model = ditn.load(shared / "golden" / "DITN_Real_x4.pth", fused=fused)
    records = load_file(shared / "golden" / "ditn_real_x4.modules.safetensors")
    ufone = model.UFONE[0]

    def run(op, *args):
        return (op if fused else op.reference)(*args)

    def as_map(patches: Tensor) -> Tensor:
        """The records' patches side by side as one map."""
        return torch.cat(list(patches), dim=2)[None]

    import ditn_kernels as dk

    itl, sal = ufone.ITLs[0], ufone.SALs[0]
    modules = {
        "sft": lambda x: run(dk.image_head, x, *model.fold().head),
        "UFONE.0": ufone,
        "UFONE.0.ITLs": lambda x: UFONE.forward(ufone, x, ufone.fold()._replace(sals=None)),
        "UFONE.0.ITLs.0": lambda x: UFONE.forward(ufone, x, one(ufone.fold(), itls=True)),
        "UFONE.0.SALs": lambda x: UFONE.forward(ufone, x, ufone.fold()._replace(itls=None)),
        "UFONE.0.SALs.0": lambda x: UFONE.forward(ufone, x, one(ufone.fold(), itls=False)),
        "UFONE.0.ITLs.0.attn": lambda x: run(dk.inner_patch_attention, x, *alone(itl.attn), "none", 8) - x,
        "UFONE.0.ITLs.0.ffn": lambda x: run(dk.gated_ffn, x, *alone(itl.ffn), "none", 8) - x,
        "UFONE.0.SALs.0.SDA": lambda x: run(dk.dilated_gate, x, *alone(sal.SDA), "none") - x,
        "UFONE.0.SALs.0.ffn": lambda x: run(dk.gated_ffn, x, *alone(sal.ffn), "none", 0) - x,
        "conv_after_body": lambda x: run(dk.image_head, x, *model.fold().tail[:2]),
        "upsample": lambda x: upsample(model, run, x),
    }
    recorded = {key.removesuffix(".in") for key in records if key.endswith(".in")}
    assert recorded == modules.keys()
    for name, module in modules.items():
        if not chosen(name):
            continue
        given, expected = records[f"{name}.in"], records[f"{name}.out"]
        if given.shape[-1] == 8:
            given, expected = as_map(given), as_map(expected)
        # The official float32 code is within 6.4e-6 where values reach 3.15.
        bound = 5e-6 * max(1, float(expected.abs().max()))
        torch.testing.assert_close(module(given), expected, rtol=0, atol=bound, msg=name)


def alone(part):
    """The weights of a part of a layer, without the norm in front of it."""
    return map_tensors(type(part).fold([part], None), lambda w: w[0])


def one(weights, *, itls: bool):
    """The weights of the first ITL, or of the first SAL, alone."""
    kept, dropped = ("itls", "sals") if itls else ("sals", "itls")
    return weights._replace(**{kept: map_tensors(getattr(weights, kept), lambda w: w[:1]), dropped: None})


def upsample(model: ditn.DITN, run, x: Tensor) -> Tensor:
    """The tail with a body of zeros, so that only the skip reaches the last convolution."""
    import ditn_kernels as dk

    body, bias, *last = model.fold().tail
    return run(dk.image_tail, x, x, torch.zeros_like(body), torch.zeros_like(bias), *last, 4)


@FUSED
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fields", [{}, {"bias": True, "ufone_conv": True, "expansion": 1.5, "upscale": 3}], ids=str)
def test_every_model_is_the_published_formula(name: str, fields: dict, fused: bool) -> None:
    model = small(MODELS[name], **fields, ufones=2 if name == "ditn" else 1).double()
    model.fused = fused
    image = torch.rand(2, 3, 19, 10, dtype=torch.float64)
    expected = published.network(model.state_dict(), image)
    # Both sides are float64; the sums are taken in another order.
    torch.testing.assert_close(model(image), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("patch_size", [4, 8, 16, 6])
def test_patch_sizes(patch_size: int) -> None:
    model = small(ditn.DITN_Tiny, patch_size=patch_size).double()
    image = torch.rand(1, 3, 11, 20, dtype=torch.float64)
    expected = published.network(model.state_dict(), image, patch_size=patch_size)
    torch.testing.assert_close(model(image), expected, rtol=1e-10, atol=1e-10)


def test_presets_are_the_papers() -> None:
    counts = {name: sum(p.numel() for p in model(4).parameters()) for name, model in MODELS.items()}
    # DITN-Real's is the official checkpoint's; the others follow from the paper's diagrams.
    assert counts == {"ditn": 1_042_200, "ditn-tiny": 387_472, "ditn-real": 444_112}
    assert (ditn.DITNConfig().overlap, ditn.DITNConfig(ufones=1).overlap) == (160, 64)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 23), (8, 8), (3, 100)], ids=str)
def test_any_size_pads_as_numpy_does(size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size)
    height, width = (-(-n // 8) * 8 for n in size)
    mode = [(0, 0), (0, 0), (0, height - size[0]), (0, width - size[1])]
    expected = np.pad(image.numpy(), mode, mode="reflect")
    np.testing.assert_array_equal(pad_to_grid(image, 8).numpy(), expected)
    assert small()(image).shape == (1, 3, 2 * size[0], 2 * size[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtypes_layouts_and_batches(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model = small()
    image = torch.rand(3, 3, 17, 12)
    exact = copy.deepcopy(model).double()(image.double())
    model = model.to(dtype)
    y = model(image.to(dtype).contiguous(memory_format=layout))
    assert y.dtype == dtype
    # Rounding once per operator, of which there are seven: 16 units in the last place of the largest value.
    bound = 16 * torch.finfo(dtype).eps * float(exact.abs().max())
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=max(bound, 1e-12))
    assert model(image[:0].to(dtype)).shape == (0, 3, 34, 24)


@pytest.mark.parametrize("upscale", UPSCALES)
def test_every_scale_in_every_backend_of_a_cpu(upscale: int) -> None:
    """Colour, gray, and from gray to colour."""
    for inputs, outputs in ((3, 3), (1, 1), (1, 3)):
        model = small(upscale=upscale, in_channels=inputs, out_channels=outputs)
        image = torch.rand(2, inputs, 9, 13)
        state = {key: value.double() for key, value in model.state_dict().items()}
        expected = published.network(state, image.double(), outputs=outputs)
        assert expected.shape == (2, outputs, 9 * upscale, 13 * upscale)
        for backend in ("torch", *(["cpu"] if _libraries.why_missing() is None else [])):
            with use_backend(backend):
                bound = 1e-5 * float(expected.abs().max())  # float32: a dozen layers, sums of up to 108 products
                torch.testing.assert_close(model(image).double(), expected, rtol=0, atol=bound)


def test_what_a_gpu_has_no_kernel_for_is_said() -> None:
    """CUDA C++ keeps a pixel's outputs in shared memory, where the 147 of x7 do not fit, and Triton in registers."""
    op = REGISTRY["image_tail"]
    for upscale in UPSCALES:
        outputs = 3 * upscale**2
        sample = Sample("", {"B": 1, "C": 60, "D": outputs, "H": 8, "W": 8}, {"upscale": upscale})
        args = op.inputs(sample, dtype=torch.float16, device="meta")
        cuda, triton = (op.backends[name].why_not(args, backward=False) for name in ("cuda", "triton"))
        gradient = op.backends["triton"].why_not(args, backward=True)
        assert (f"makes at most 128 outputs per pixel, asked for {outputs}" in cuda) == (upscale > 6)
        assert (f"differentiates at most 128 outputs per pixel, asked for {outputs}" in gradient) == (upscale > 6)
        assert triton == []


@pytest.mark.skipif(CUDA or not interpreted(), reason="Triton does not interpret here")
def test_the_largest_scale_in_triton() -> None:
    op = REGISTRY["image_tail"]
    args = op.inputs(Sample("x8", {"B": 1, "C": 12, "D": 192, "H": 3, "W": 5}, {"upscale": 8}))
    exact = op.reference(*(value.double() if isinstance(value, Tensor) else value for value in args.values()))
    bound = 1e-5 * float(exact.abs().max())  # float32: two sums of 108 products
    torch.testing.assert_close(op(*args.values(), backend="triton").double(), exact, rtol=0, atol=bound)


def test_wrong_input_is_named() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\], got shape \[1, 4, 8, 8\]"):
        model(torch.rand(1, 4, 8, 8))
    with pytest.raises(TypeError, match=r"got torch\.uint8"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least one pixel"):
        model(torch.rand(1, 3, 0, 8))
    with pytest.raises(ValueError, match="upscale is 9"):
        ditn.DITN(9)
    with pytest.raises(ValueError, match="norm is 'batch'"):
        ditn.DITN(norm="batch")


def test_gradients_agree_fused_and_unfused() -> None:
    model = small().double().requires_grad_()
    image = torch.rand(1, 3, 9, 16, dtype=torch.float64, requires_grad=True)

    def gradients(run) -> list[Tensor]:
        return list(torch.autograd.grad(run(image).square().sum(), [image, *model.parameters()]))

    fused = gradients(model)
    expected = gradients(lambda x: published.network(dict(model.named_parameters()), x))
    for (name, _), a, b in zip([("image", 0), *model.named_parameters()], fused, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=name)


def test_folded_weights_follow_the_parameters() -> None:
    model, image = small(), torch.rand(1, 3, 8, 8)
    before = model(image)
    assert model.folded() is model.folded()
    model.sft.weight.mul_(1.5)
    changed = model(image)
    assert not torch.equal(changed, before)
    model.load_state_dict(
        {key: value / 1.5 if key == "sft.weight" else value for key, value in model.state_dict().items()}
    )
    torch.testing.assert_close(model(image), before)
    model.sft.weight.data.mul_(1.5)  # hidden from the version counter
    model.refold()
    torch.testing.assert_close(model(image), changed)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def written_in_place(model: ditn.DITN) -> None:
    model.UFONE[0].SALs[0].ffn.project_out.weight.mul_(2)


def loaded(model: ditn.DITN) -> None:
    model.load_state_dict({key: 1.5 * value for key, value in model.state_dict().items()})


def optimised(model: ditn.DITN) -> None:
    with torch.enable_grad():
        model.requires_grad_()
        model(torch.rand(1, 3, 8, 8).double()).sum().backward()
        torch.optim.Adam(model.parameters(), 0.1).step()
    model.requires_grad_(False)


def parameter_replaced(model: ditn.DITN) -> None:
    layer = model.UFONE[0].ITLs[0].attn.qkv
    layer.weight = nn.Parameter(2 * layer.weight, requires_grad=False)


def module_replaced(model: ditn.DITN) -> None:
    model.conv_after_body = nn.Conv2d(model.config.dim, model.config.dim, 3, padding=1).double().requires_grad_(False)


def parametrized(model: ditn.DITN) -> None:
    torch.nn.utils.parametrize.register_parametrization(model.sft, "weight", Doubled())
    model.requires_grad_(False)


def parametrization_changed(model: ditn.DITN) -> None:
    parametrized(model)
    model(torch.rand(1, 3, 8, 8).double())
    model.sft.parametrizations.weight.original.mul_(2)


def rounded(model: ditn.DITN) -> None:
    model.to(torch.bfloat16).to(torch.float64)


@pytest.mark.parametrize(
    "change",
    [
        written_in_place,
        loaded,
        optimised,
        parameter_replaced,
        module_replaced,
        parametrized,
        parametrization_changed,
        rounded,
    ],
    ids=lambda change: change.__name__,
)
def test_a_changed_weight_is_noticed(change) -> None:
    """What was prepared for the old weights is not used again: the result is plain PyTorch's on the new ones."""
    model, image = small().double(), torch.rand(1, 3, 8, 8).double()
    before = model(image)
    change(model)
    after = model(image)
    assert not torch.allclose(after, before)
    weights = {"sft.weight": model.sft.weight} | dict(model.named_parameters())
    weights = {key: value for key, value in weights.items() if "parametrizations" not in key}
    torch.testing.assert_close(after, published.network(weights, image), rtol=1e-8, atol=1e-8)


def test_other_weights_for_one_call() -> None:
    model, image = small().double(), torch.rand(1, 3, 8, 8).double()
    before, others = model(image), {key: 1.5 * value for key, value in model.named_parameters()}
    after = torch.func.functional_call(model, others, (image,))
    torch.testing.assert_close(after, published.network(others, image), rtol=1e-8, atol=1e-8)
    assert torch.equal(model(image), before)


@pytest.mark.parametrize("of", ["image", "weights"])
def test_derivatives_in_forward_mode(of: str) -> None:
    """In the image and in the weights, of a model that is called for the first time, against central differences of the
    published formula; the fused operators refuse what they would lose, and nothing of it stays with the model."""
    model, image = small(fused=False).double(), torch.rand(1, 3, 8, 8).double()
    given = dict(model.named_parameters())
    along = {key: torch.randn_like(value) for key, value in given.items()}

    def at(step: float | Tensor, network) -> Tensor:
        if of == "image":
            return network(given, image * (1 + step))
        return network({key: value + step * along[key] for key, value in given.items()}, image)

    def ours(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x,))

    step, zero, one = 1e-5, torch.zeros(()).double(), torch.ones(()).double()
    expected = (at(step, published.network) - at(-step, published.network)) / (2 * step)
    _, tangent = torch.func.jvp(lambda t: at(t, ours), (zero,), (one,))
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(image), published.network(given, image), rtol=1e-8, atol=1e-8)

    model = small().double()
    for _ in range(2):  # afresh, and with its weights folded
        with pytest.raises(NotImplementedError, match="has no derivative in forward mode"):
            torch.func.jvp(lambda t: at(t, ours), (zero,), (one,))
        model(image)


def test_a_forked_process_has_its_own_weights() -> None:
    script = """
import os, sys, torch, ditn
model, image = ditn.DITN_Real(2, dim=8, itls=1, sals=1).eval().requires_grad_(False), torch.rand(1, 3, 8, 8)
before = model(image)
child = os.fork()
if not child:
    model.sft.weight.mul_(2)
    os._exit(torch.equal(model(image), before))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and torch.equal(model(image), before)
"""
    # With more threads than one, OpenMP's would be missing in the child.
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.usefixtures("compiler")
def test_compiled_for_any_size() -> None:
    """Sizes as variables of the graph; the folded weights are constants of it, and their sizes are none."""
    model = small()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="eager")
    for shape in ((1, 3, 16, 24), (2, 3, 9, 17), (1, 3, 40, 8), (1, 3, 1, 1)):
        image = torch.rand(shape)
        torch.testing.assert_close(compiled(image), model(image), rtol=0, atol=0)


def test_deepcopy_pickle_and_state_dict() -> None:
    model, image = small(), torch.rand(1, 3, 9, 8)
    expected = model(image)
    torch.testing.assert_close(copy.deepcopy(model)(image), expected, rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(image), expected, rtol=0, atol=0)
    other = ditn.DITN(config=model.config).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(image), expected, rtol=0, atol=0)


def test_compile_is_one_graph_and_follows_new_weights() -> None:
    model = small()
    compiled = torch.compile(model, fullgraph=True)
    for shape in ((1, 3, 16, 9), (2, 3, 8, 24), (1, 3, 7, 7)):
        image = torch.rand(shape)
        torch.testing.assert_close(compiled(image), model(image), rtol=1e-6, atol=1e-6)
    model.load_state_dict({key: 1.1 * value for key, value in model.state_dict().items()})
    torch.testing.assert_close(compiled(image), model(image), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("example", [(2, 3, 24, 40), (2, 3, 21, 11)], ids=str)
@FUSED
def test_export_runs_at_other_sizes(example: tuple[int, ...], fused: bool) -> None:
    model = small()
    model.fused = fused
    auto = torch.export.Dim.AUTO
    program = torch.export.export(model, (torch.rand(example),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    for shape in ((1, 3, 8, 8), (3, 3, 20, 17), (1, 3, 1, 1), (2, 3, 64, 5)):
        image = torch.rand(shape)
        # The graph folds in float32, the model in float64: a few units in the last place of the largest value.
        expected = model(image)
        bound = 16 * torch.finfo(torch.float32).eps * float(expected.abs().max())
        torch.testing.assert_close(program.module()(image), expected, rtol=0, atol=bound)


def test_autocast_runs_operators_in_its_dtype() -> None:
    model, image = small(), torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(image)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(image), rtol=0.1, atol=0.1)  # bfloat16 keeps 8 bits
