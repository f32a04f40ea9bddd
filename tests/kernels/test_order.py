# SPDX-License-Identifier: Apache-2.0
"""Which backend comes first on which GPU: as measured, and said to be unmeasured where nobody has. On faked chips."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from conftest import PROJECT

import ditn_kernels.__main__
from benchmarks import ops
from benchmarks import order as measuring
from ditn.commands import info
from ditn.commands.cli import main
from ditn_kernels import REGISTRY, _dispatch, _order, explain
from ditn_kernels._op import Op
from ditn_kernels._order import Line, order

H200 = "measured on NVIDIA H200, 2026-11-28"
MACHINE = {"gpu": "NVIDIA T4", "capability": "7.5", "date": "2027-01-02"}


class OnGpu(torch.Tensor):
    """Without values; it says that it is on a GPU."""

    device = torch.device("cuda:0")


def gpu_args(op: Op, dtype: torch.dtype = torch.float16) -> dict:
    args = op.inputs(op.samples[0], dtype=dtype, device="meta")
    return {name: value.as_subclass(OnGpu) if torch.is_tensor(value) else value for name, value in args.items()}


@pytest.fixture
def chip(monkeypatch):
    """A GPU of this capability, for which all backends are installed."""
    monkeypatch.setenv("DITN_PROOF", "off")  # there is no GPU to try them on
    monkeypatch.delenv("DITN_BACKEND", raising=False)
    for name in ("triton", "cuda"):
        monkeypatch.setattr(_dispatch.BACKENDS[name], "missing", lambda *args, **options: [])

    def put(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))

    return put


@pytest.fixture
def table_of(monkeypatch):
    def put(*lines: Line) -> None:
        monkeypatch.setattr(_order, "table", lambda: lines)
        order.cache_clear()

    yield put
    order.cache_clear()


# The table of shared/gpu/README.md by hand, but for head and tail, whose kernels in CUDA C++ were replaced since then.
# Attention's two are equal within 4 %.
FIRST_ON_H200 = {
    "tanh_affine": "triton",
    "layer_norm2d": "triton",
    "inner_patch_attention": "cuda",
    "gated_ffn": "cuda",
    "dilated_gate": "cuda",
    "inner_patch_stage": "cuda",
}


@pytest.mark.parametrize(("name", "first"), FIRST_ON_H200.items())
def test_on_sm_90_what_was_faster_runs(name: str, first: str, chip) -> None:
    chip(9, 0)
    found = explain(REGISTRY[name], *gpu_args(REGISTRY[name]).values())
    assert found.chosen == first
    other = {"triton": "cuda", "cuda": "triton"}[first]
    assert f"  {other:7} could, but is slower here ({H200})" in str(found).splitlines()


@pytest.mark.parametrize(("name", "cuda", "triton"), [("image_head", "700", "2,180"), ("image_tail", "3,950", "9,460")])
def test_kernels_that_replaced_measured_ones_are_estimated(name: str, cuda: str, triton: str, chip) -> None:
    chip(9, 0)
    found = explain(REGISTRY[name], *gpu_args(REGISTRY[name]).values())
    assert found.chosen == "cuda"
    reason = f"CUDA C++ is estimated at {cuda} cycles per 64 pixels, Triton at {triton}"
    text = f"  triton  could, but is not chosen (order unmeasured on sm_90 in float16: {reason})"
    assert text in str(found).splitlines()


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)], ids=str)
def test_a_chip_that_nobody_measured_takes_the_nearest_and_says_so(capability: tuple[int, int], chip) -> None:
    chip(*capability)
    found = explain(REGISTRY["gated_ffn"], *gpu_args(REGISTRY["gated_ffn"]).values())
    assert found.chosen == "cuda"
    number = 10 * capability[0] + capability[1]
    text = f"  triton  could, but is not chosen (order unmeasured on sm_{number} in float16: as {H200})"
    assert text in str(found).splitlines()


def test_before_sm_80_cuda_comes_first_for_a_reason(chip) -> None:
    chip(7, 5)
    for name in FIRST_ON_H200:
        for dtype in (torch.float16, torch.float32):
            found = explain(REGISTRY[name], *gpu_args(REGISTRY[name], dtype).values())
            # Only halves of the shipped networks' patches are a stage's own kernel.
            assert found.chosen == ("layers" if name == "inner_patch_stage" and dtype == torch.float32 else "cuda")
            assert found.order is not None
            assert not found.order.measured
            assert "Triton multiplies without tensor cores before sm_80" in found.order.source


def test_a_dtype_or_direction_that_nobody_measured_keeps_the_operators_own_order(chip) -> None:
    chip(9, 0)
    op = REGISTRY["gated_ffn"]
    found = explain(op, *gpu_args(op, torch.float32).values())
    assert found.chosen == "triton"
    assert "  cuda    could, but is not chosen (order unmeasured on sm_90 in float32)" in str(found).splitlines()
    backward = explain(op, *gpu_args(op).values(), backward=True)
    assert backward.order == _order.Order(tuple(op.backends), "unmeasured on sm_90 in float16 backward")


def test_forced_or_on_a_cpu_no_order_is_spoken_of(chip) -> None:
    chip(9, 0)
    op = REGISTRY["gated_ffn"]
    found = explain(op, *gpu_args(op).values(), backend="triton")
    assert (found.chosen, found.order) == ("triton", None)
    assert "  cuda    could, but is not chosen" in str(found).splitlines()
    assert explain(op, *op.inputs(op.samples[0], device="cpu").values()).order is None


@pytest.mark.parametrize(
    ("capability", "dtype", "chosen"),
    [
        ((9, 0), torch.float16, "cuda"),
        ((9, 0), torch.bfloat16, "cuda"),
        ((9, 0), torch.float32, "layers"),  # where Triton comes first
        ((8, 0), torch.bfloat16, "layers"),  # in which there is no kernel
        ((8, 9), torch.float16, "cuda"),
        ((7, 5), torch.float32, "cuda"),
    ],
    ids=str,
)
def test_spatial_stage_serves_where_its_layers_would_run_the_same(capability, dtype, chosen, chip, table_of) -> None:
    chip(*capability)
    op = REGISTRY["spatial_stage"]
    given = gpu_args(op, dtype).values()
    assert explain(op, *given).chosen == chosen
    # With a measurement in which Triton is the faster for one of them.
    table_of(
        Line(
            operator="gated_ffn",
            direction="forward",
            dtype=str(dtype).removeprefix("torch."),
            capability=10 * capability[0] + capability[1],
            backends=["triton", "cuda"],
            source="measured on NVIDIA T4, 2027-01-02",
        )
    )
    found = explain(op, *given)
    assert found.chosen == "layers"
    forced = explain(op, *given, backend="cuda")
    if capability == (8, 0):
        assert forced.chosen == "layers"
    else:
        assert forced.chosen == "cuda"
        assert found.passed_over["cuda"][-1] == "its layers' gated_ffn runs by triton"
        assert f"  cuda    could, but is not chosen: {', '.join(found.passed_over['cuda'])}" in str(found).splitlines()


def test_the_nearest_measured_chip(table_of) -> None:
    """The newest that is not newer, else the oldest; a line with a reason is for its own chip alone."""
    backends = ("a", "b", "c", "torch")

    def line(capability: int, first: str, source: str) -> Line:
        return Line("op", "forward", capability, "float16", [first], source)

    table_of(
        line(75, "b", "a has no tensor cores"),
        line(80, "b", "measured on B"),
        line(90, "c", "measured on C"),
    )
    for capability, first in ((70, "b"), (75, "b"), (80, "b"), (89, "b"), (90, "c"), (120, "c")):
        found = order("op", backends, capability=capability, dtype="float16", backward=False)
        assert found.backends == (first, *(name for name in backends if name != first))
        assert found.measured == (capability in (80, 90))
    (reason,) = {order("op", backends, capability=75, dtype="float16", backward=False).source}
    assert reason == "unmeasured on sm_75 in float16: a has no tensor cores"


def test_a_line_may_name_what_an_operator_lacks(table_of) -> None:
    table_of(Line("op", "forward", 90, "float16", ["gone", "b"], "measured on B"))
    found = order("op", ("a", "b", "torch"), capability=90, dtype="float16", backward=False)
    assert found.backends == ("b", "a", "torch")


def test_info_says_which_order_holds(capsys) -> None:
    """For a chip that is not here; those that are here are said likewise (test_assembler.py)."""
    ditn_kernels.__main__.main(["--capability", "90", "75", "89"])
    blocks = dict(block.split("\n", 1) for block in capsys.readouterr().out.split("\n\n")[1:])
    said = {chip: blocks[f"order on sm_{chip}, float16"].splitlines() for chip in (90, 75, 89)}
    assert f"  {'gated_ffn forward':30} cuda, triton, torch ({H200})" in said[90]
    assert f"  {'tanh_affine forward':30} triton, torch, cuda ({H200})" in said[90]
    assert f"  {'image_head forward':30} cuda, triton, torch (unmeasured on sm_90 in float16: CUDA" in "\n".join(
        said[90]
    )
    assert f"  {'gated_ffn backward':30} triton, torch (unmeasured on sm_90 in float16 backward)" in said[90]
    assert f"  {'gated_ffn forward':30} cuda, triton, torch (unmeasured on sm_89 in float16: as {H200})" in said[89]
    # Triton has no stage on these, and no gradient before sm_80, where there is nothing to choose between.
    stage = f"  {'inner_patch_stage forward':30} cuda, torch (unmeasured on sm_89 in float16: as {H200})"
    assert stage in said[89]
    assert not [line for line in said[75] if "backward" in line]


def test_info_of_a_machine_with_a_gpu(monkeypatch, capsys) -> None:
    there = {"device_count": lambda: 1, "get_device_name": lambda index: "NVIDIA H200", "is_available": lambda: True}
    for name, value in (there | {"get_device_capability": lambda device=None: (9, 0)}).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(info, "choose_device", lambda name: torch.device("cpu"))
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  {'gated_ffn forward':30} cuda, triton, torch ({H200})" in lines[lines.index("order on sm_90, float16") :]
    assert main(["info", "--json"]) == 0
    orders = json.loads(capsys.readouterr().out)["orders"]["sm_90"]
    assert orders["layer_norm2d forward"] == f"triton, cuda, torch ({H200})"


@pytest.mark.parametrize(
    ("dtype", "chip", "backward", "names"),
    [
        (torch.float16, (9, 0), False, ["triton", "cuda", "torch"]),
        (torch.bfloat16, (9, 0), False, ["triton", "cuda", "torch"]),
        (torch.bfloat16, (10, 0), False, ["triton", "torch"]),
        (torch.bfloat16, (9, 0), True, ["triton", "torch"]),
        (torch.float16, (9, 0), True, ["triton", "torch"]),
        (torch.float16, (7, 5), True, ["torch"]),
        (torch.float16, (7, 0), False, ["cuda", "torch"]),
    ],
)
def test_who_has_a_kernel(dtype, chip, backward, names) -> None:
    backends = REGISTRY["gated_ffn"].backends
    assert [name for name in backends if backends[name].has_kernel(dtype, chip, backward=backward)] == names


def timed(operator: str, backend: str, *milliseconds: float) -> list[dict]:
    """Rows as benchmarks.ops writes them, of one option after the other."""
    shared = {"operator": operator, "direction": "forward", "dtype": "float16", "size": "8x8", "backend": backend}
    return [shared | {"options": {"patch_size": n}, "median_ms": ms} for n, ms in enumerate(milliseconds)]


def test_the_order_is_of_the_geometric_means() -> None:
    """A third of the time in one case outweighs a bit more than twice the time in another, though the sum is larger."""
    rows = timed("gated_ffn", "triton", 3, 40) + timed("gated_ffn", "cuda", 1, 90) + timed("gated_ffn", "torch", 9, 99)
    rows += timed("spatial_stage", "layers", 5)  # no backend, and no choice
    (line,) = measuring.lines(MACHINE, rows)
    assert line == Line(
        "gated_ffn", "forward", 75, "float16", ["cuda", "triton", "torch"], "measured on NVIDIA T4, 2027-01-02"
    )
    with pytest.raises(ValueError, match="gated_ffn forward float16: backends were timed with different things"):
        measuring.lines(MACHINE, rows + timed("gated_ffn", "triton", 1, 1, 1))


def test_measuring_rewrites_its_own_lines(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "order.json"
    path.write_bytes(_order.FILE.read_bytes())
    monkeypatch.setattr(_order, "FILE", path)
    rows = [row for name, ms in (("triton", 1), ("cuda", 2), ("torch", 3)) for row in timed("gated_ffn", name, ms)]
    rows += timed("dilated_gate", "triton", 1) + timed("dilated_gate", "torch", 2)
    before = _order.table()
    try:
        ops.keep_order(MACHINE, rows, rounds=2)
        assert _order.table() == before
        assert "2 rounds are fewer than 10" in capsys.readouterr().out
        ops.keep_order(MACHINE, rows, rounds=20)
        assert "the order of dilated_gate forward float16 stays: no cuda here" in capsys.readouterr().out
        changed = [line for line in _order.table() if line not in before]
    finally:
        _order.table.cache_clear()
    assert [(line.operator, line.capability, line.backends[0]) for line in changed] == [("gated_ffn", 75, "triton")]
    assert len(json.loads(path.read_text())["lines"]) == len(before)


def test_the_table_is_what_the_results_say(tmp_path, monkeypatch) -> None:
    """Made anew from the results, on lines that are not measured; no other line calls itself measured."""
    shipped, reasoned = _order.table(), [line for line in _order.table() if not line.measured]
    assert len(reasoned) < len(shipped)
    path = tmp_path / "order.json"
    path.write_text(json.dumps({"lines": [dataclasses.asdict(line) for line in reasoned]}))
    monkeypatch.setattr(_order, "FILE", path)
    _order.table.cache_clear()
    try:
        assert measuring.main([]) == 0
        assert _order.table() == shipped
        assert path.read_bytes() == (PROJECT / "ditn_kernels" / "backend_order.json").read_bytes()
    finally:
        monkeypatch.undo()
        _order.table.cache_clear()
