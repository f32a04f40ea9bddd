# SPDX-License-Identifier: Apache-2.0
"""Kernels are proved before they serve: the wrong and the unrepeatable are found and replaced. Without a GPU Triton's
interpreter runs them, and the CPU counts as a device whose kernels have to be proved."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from importlib import import_module

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.harness import cases
from ditn.commands.cli import main
from ditn_kernels import REGISTRY, BackendError, Op, Proof, _proof, _proving, _trial, _verdicts, explain, prove
from ditn_kernels._digest import digest
from ditn_kernels._dispatch import reasons_unproved
from ditn_kernels._op import Sample
from ditn_kernels.backends import BACKENDS
from ditn_kernels.backends.triton import _compile, _loops
from ditn_kernels.backends.triton._math import load_vector, rounded, standardized

OP = REGISTRY["layer_norm2d"]
SMALL = Sample("small", {"B": 1, "C": 20, "H": 5, "W": 7})


@triton.jit
def _layer_norm2d_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    eps,
    pixels,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    CALL: tl.constexpr,
    FAULT: tl.constexpr,
):
    """As that of the library, but with a FAULT: "later": every program except the first adds the weight instead of the
    bias. "second": the same in every second call. "last bit": every second call is one unit in the last place off."""
    channel = tl.arange(0, C_PAD)
    pixel = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = (pixel < pixels - first)[:, None] & (channel < C)[None, :]
    offset = first * C + pixel[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + offset, inside, 0.0).to(tl.float32)
    weight = load_vector(weight_ptr, channel, C)
    bias = load_vector(bias_ptr, channel, C)
    if FAULT == "later":
        bias = tl.where(tl.program_id(0) > 0, weight, bias)
    if FAULT == "second" and CALL == 2:
        bias = weight
    y = standardized(x, channel, C, eps) * weight[None, :] + bias[None, :]
    if FAULT == "last bit" and CALL == 2:
        y = (y.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    tl.store(y_ptr + offset, rounded(y, y_ptr.dtype.element_ty), inside)


class Sabotaged:
    """Launches the kernel above in place of the library's."""

    def __init__(self, fault: str) -> None:
        self.fault, self.calls = fault, 0
        self.device_caches: dict = {}
        self.fn, self.arg_names = _layer_norm2d_fwd_kernel.fn, _layer_norm2d_fwd_kernel.arg_names

    def __getitem__(self, grid):
        def launch(*args, **constants) -> None:
            self.calls += 1
            _layer_norm2d_fwd_kernel[grid](*args, **constants, CALL=2 - self.calls % 2, FAULT=self.fault)

        return launch


@pytest.fixture
def proving(device, tmp_path, monkeypatch):
    """Proofs are made and kept in a folder of their own; Triton may be chosen also where it is interpreted."""
    monkeypatch.setenv("DITN_PROOF", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DITN_BACKEND", raising=False)
    monkeypatch.setattr(_proof, "DEVICES", {device.type})
    monkeypatch.setattr(_proof, "_faults", {})
    monkeypatch.setattr(type(BACKENDS["triton"]), "auto_selectable", lambda self, device: True)
    _verdicts._say_not_kept.cache_clear()
    return tmp_path / "ditn-kernels"


@pytest.fixture
def sabotage(monkeypatch):
    """Make the library's kernel wrong."""
    module = import_module("ditn_kernels.backends.triton.layer_norm2d")

    def put(fault: str) -> Sabotaged:
        kernel = Sabotaged(fault)
        monkeypatch.setattr(module, "_layer_norm2d_fwd_kernel", kernel)
        return kernel

    return put


@pytest.fixture
def trials(monkeypatch):
    """The operators of all trials, each of which finds the fault at the end of the list `found`, if there is one."""

    class Trials(list):
        def __init__(self) -> None:
            self.found: list[str] = []

    seen = Trials()

    def fault(op: Op, kernel, args, *, backward: bool) -> str:
        assert not torch.compiler.is_compiling()
        seen.append(op.name)
        return seen.found[-1] if seen.found else ""

    monkeypatch.setattr(_trial, "fault", fault)
    return seen


def verdicts(folder) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]


def small(dtype: torch.dtype = torch.float32) -> list:
    return list(OP.inputs(SMALL, dtype=dtype).values())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("later", "computes wrongly: the result has an error of"),
        ("second", "is not repeatable: the result has other bits when it is computed again"),
        ("last bit", "is not repeatable: the result has other bits when it is computed again"),
    ],
)
def test_a_wrong_kernel_is_found_and_replaced(fault: str, words: str, proving, sabotage) -> None:
    """The call itself has one program and the first of two runs is right: only a sample can tell."""
    sabotage(fault)
    args = small()
    with pytest.warns(RuntimeWarning) as caught:
        result, _ = OP(*args), OP(*args)
    (message,) = [str(one.message) for one in caught if "layer_norm2d" in str(one.message)]
    assert message.startswith(f"layer_norm2d forward in float32 by triton {words}")
    assert f"torch {torch.__version__}" in message
    assert f"triton {triton.__version__}" in message
    assert "C 20" in message

    found = explain(OP, *args)
    assert found.chosen not in ("triton", None)
    (reason,) = found.refusals["triton"]
    assert reason.startswith(words)
    expected = OP.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args))
    assert (result - expected).abs().max() <= 1e-5  # the sabotaged ones are wrong by more than 0.1, or not seen here

    (kept,) = verdicts(proving)
    assert kept["fault"].startswith(words)
    with pytest.raises(BackendError, match=f"layer_norm2d: triton {words}"):
        OP(*args, backend="triton")


def test_without_proof_a_forced_kernel_runs(proving, sabotage, monkeypatch) -> None:
    kernel = sabotage("later")
    with pytest.warns(RuntimeWarning, match="computes wrongly"):
        explain(OP, *small())
    monkeypatch.setenv("DITN_PROOF", "off")
    before = kernel.calls
    OP(*small(), backend="triton")
    assert kernel.calls == before + 1
    assert explain(OP, *small()).chosen == "triton"


@pytest.mark.parametrize("backward", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_right_kernels_pass_and_serve(backward: bool, proving) -> None:
    op = REGISTRY["tanh_affine"]
    sample = Sample("small", {"B": 1, "C": 20, "D": 36, "H": 16, "W": 16})
    args = [arg.requires_grad_(backward) for arg in op.inputs(sample).values()]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        y = op(*args)
        if backward:
            y.sum().backward()
    found = {one["facts"]["direction"]: one["fault"] for one in verdicts(proving)}
    assert found == ({"forward": "", "backward": ""} if backward else {"forward": ""})
    assert explain(op, *args, backward=backward).chosen == "triton"


class TwoKernels:
    """A backend that has, beside its usual kernel, a special one, which is wrong."""

    def __init__(self) -> None:
        self.special, self.tried = True, 0

    def identity(self, op: Op, device: torch.device) -> dict[str, str]:
        return {"kernels": "special" if self.special else "usual"}

    def kernel(self, op: Op, *, backward: bool):
        self.tried += 1
        return (lambda *args: op.reference(*args) + 1) if self.special else op.reference

    def fall_back(self, op: Op, device: torch.device, dtype: torch.dtype) -> bool:
        was, self.special = self.special, False
        return was


def test_a_backend_may_have_another_kernel(proving, monkeypatch) -> None:
    """The usual kernel is proved in its turn, and serves; so it does for what was found right of the special one."""
    backend, args = TwoKernels(), OP.named(small(), {})
    other = OP.named(small(torch.float16), {})
    backend.special = False
    assert not _proof.reasons_against(OP, "two", backend, other, backward=False, serving=True)
    for process in (1, 2):
        backend.special = True
        with pytest.warns(RuntimeWarning, match="computes wrongly: .* kernels special"):
            assert not _proof.reasons_against(OP, "two", backend, args, backward=False, serving=True)
        assert not backend.special
        assert len(_proof._faults) == 1
        found = {
            one["facts"]["kernels"]: one["fault"] for one in verdicts(proving) if one["facts"]["dtype"] == "float32"
        }
        assert found["special"].startswith("computes wrongly")
        assert found["usual"] == ""
        assert backend.tried == 3, process
        monkeypatch.setattr(_proof, "_faults", {})


def test_a_verdict_is_found_again(proving, trials, monkeypatch) -> None:
    for _ in range(2):
        explain(OP, *small())
    assert trials == ["layer_norm2d"]
    monkeypatch.setattr(_proof, "_faults", {})  # as a new process begins
    explain(OP, *small())
    assert trials == ["layer_norm2d"]
    explain(OP, *small(torch.float16))
    explain(OP, *OP.inputs(Sample("wider", {**SMALL.axes, "C": 24})).values())
    explain(OP, *OP.inputs(Sample("larger", {**SMALL.axes, "B": 2, "H": 9})).values())
    assert len(trials) == len(verdicts(proving)) == 3
    monkeypatch.setattr(_proof, "_faults", {})
    monkeypatch.setattr(type(BACKENDS["triton"]), "identity", lambda self, op, device: {"assembler": "another"})
    explain(OP, *small())
    assert len(trials) == 4


@pytest.mark.parametrize("changed", ["layer_norm2d.py", "configs/layer_norm2d_fwd.json"])
def test_other_code_or_configurations_need_another_proof(changed: str, tmp_path, monkeypatch) -> None:
    package = tmp_path / "ditn_kernels"
    shutil.copytree(_proof._FOLDER, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setattr(_proof, "_FOLDER", package)
    before = _proof._code.__wrapped__()
    with (package / "backends" / "triton" / changed).open("a") as file:
        file.write("\n")
    digest.cache_clear()
    assert _proof._code.__wrapped__() != before


def test_once_proved_nothing_is_looked_up(proving, trials, monkeypatch) -> None:
    explain(OP, *small())
    monkeypatch.setattr(_proof, "_look_up", None)
    monkeypatch.setattr(_verdicts, "read", None)
    assert explain(OP, *small()).chosen == "triton"


@pytest.mark.parametrize("content", ["", '{"facts": {', "[]", '{"facts": {}, "fault": ""}', '{"fault": 3}'])
def test_a_damaged_verdict_is_none(content: str, proving, trials, monkeypatch) -> None:
    explain(OP, *small())
    (path,) = proving.glob("*.json")
    path.write_text(content, encoding="utf-8")
    monkeypatch.setattr(_proof, "_faults", {})
    explain(OP, *small())
    assert trials == ["layer_norm2d"] * 2
    assert json.loads(path.read_text(encoding="utf-8"))["fault"] == ""


def test_verdicts_are_shared_by_many(proving) -> None:
    """Whoever reads while others write finds nothing or all of it."""
    facts, stop, found = {"operator": "x" * 100_000}, threading.Event(), set()

    def write() -> None:
        while not stop.is_set():
            _verdicts.write(facts, "wrong")

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for _ in range(100):
        found.add(_verdicts.read(facts))
    stop.set()
    for writer in writers:
        writer.join()
    assert found <= {None, "wrong"}
    assert _verdicts.read(facts) == "wrong"
    assert [path.suffix for path in proving.iterdir()] == [".json"]


def test_a_kernel_that_raises_is_replaced(proving, monkeypatch) -> None:
    def broken(*args):
        raise ValueError("no such layout\nand more")

    monkeypatch.setattr(BACKENDS["triton"], "kernel", lambda op, *, backward: broken, raising=False)
    with pytest.warns(RuntimeWarning, match="by triton fails with ValueError: no such layout. It is not used in this"):
        OP(*small())
    assert "no such layout" in str(explain(OP, *small()))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("ditn_native: out of memory, there is no room for a tensor of 4 x 4"),
    ],
    ids=str,
)
def test_without_memory_it_could_not_be_tried(error: Exception, proving, monkeypatch) -> None:
    def full(*args):
        raise error

    monkeypatch.setattr(BACKENDS["triton"], "kernel", lambda op, *, backward: full, raising=False)
    with pytest.warns(RuntimeWarning, match="serves unproved, it could not be tried: .*memory"):
        assert explain(OP, *small()).chosen == "triton"
    assert not verdicts(proving)


@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to find C compiler"), OSError(30, "Read-only file system")], ids=str
)
def test_what_the_machine_lacks_is_no_verdict(error: Exception, proving, monkeypatch) -> None:
    """Another backend serves, in this process alone; an older verdict, that it is right, is forgotten."""

    def lacking(*args):
        raise error

    assert explain(OP, *small()).chosen == "triton"
    assert [one["fault"] for one in verdicts(proving)] == [""]
    monkeypatch.setattr(BACKENDS["triton"], "kernel", lambda op, *, backward: lacking, raising=False)
    call = _proof.Call(OP, "triton", BACKENDS["triton"], OP.named(small()), False)
    assert "fails with" in _proof.prove(call, BACKENDS["triton"].identity(OP, call.device))
    assert not verdicts(proving)
    monkeypatch.setattr(_proof, "_faults", {})
    with pytest.warns(RuntimeWarning, match="It is not used in this process from now on"):
        assert explain(OP, *small()).chosen != "triton"
    assert not verdicts(proving)


def test_a_lost_gpu_is_said_and_the_next_process_spared(proving, trials, monkeypatch) -> None:
    trials.found.append("fails with AcceleratorError: an illegal memory access was encountered")
    monkeypatch.setattr(_trial, "alive", lambda device: False)
    with pytest.raises(_proof.LostContextError, match=r"illegal memory access.* The GPU is lost to this process"):
        OP(*small())
    monkeypatch.setattr(_proof, "_faults", {})
    monkeypatch.setattr(_trial, "alive", lambda device: True)
    with pytest.warns(RuntimeWarning, match="illegal memory access"):
        OP(*small())
    assert trials == ["layer_norm2d"]


def test_nothing_is_proved_while_a_graph_is_captured(proving, trials, monkeypatch) -> None:
    with monkeypatch.context() as capturing:
        for question in ("is_initialized", "is_current_stream_capturing"):
            capturing.setattr(torch.cuda, question, lambda: True)
        assert explain(OP, *small()).chosen == "triton"
    assert trials == []
    explain(OP, *small())
    assert trials == ["layer_norm2d"]


def test_nothing_is_proved_while_a_graph_is_traced(proving, trials) -> None:
    class Module(torch.nn.Module):
        def forward(self, *args):
            return OP(*args)

    args = tuple(small())
    torch.export.export(Module(), args, strict=False)
    with torch._subclasses.FakeTensorMode() as mode:
        assert explain(OP, *(mode.from_tensor(arg) for arg in args[:3])).chosen == "triton"
    assert trials == []
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    compiled(*args)
    assert trials == ["layer_norm2d"]  # by the graph, when it ran


@pytest.mark.parametrize("old", [False, True, None])
@pytest.mark.parametrize("new", [None, "tf32", "ieee"])
def test_tf32_is_put_back(old, new) -> None:
    """In PyTorch's old and its new setting, also where they disagree; inside, neither allows it."""
    products = torch.backends.cuda.matmul

    def state():
        try:
            allowed = products.allow_tf32
        except RuntimeError:
            allowed = "disagrees"
        return allowed, products.fp32_precision, torch.backends.cudnn.conv.fp32_precision

    try:
        if old is not None:
            products.allow_tf32 = old
        if new is not None:
            products.fp32_precision = new
        before = state()
        with _trial._usual_settings():
            assert state()[0] is False
            assert torch.backends.cudnn.allow_tf32 is False
        after = state()
    finally:
        products.allow_tf32 = False
        products.fp32_precision = "none"
    if before[:2] == ("disagrees", "ieee"):
        before = (False, *before[1:])  # the new setting counts
    assert after == before


@pytest.mark.parametrize("op", REGISTRY.values(), ids=lambda op: op.name)
def test_every_loop_of_a_sample_goes_round(op: Op) -> None:
    """On an H100 each program takes several tiles, as those of a picture do, and the loops inside a task go round as
    often as with a picture; and what is compiled is the same but for counts that are multiples of 16 in one of them."""
    if "triton" not in op.backends:
        pytest.skip("has no Triton kernel")
    counts = {"patches", "blocks", "tiles", "pixels", "segments", "rows", "columns", "near_rows", "stride"}
    kinds = {}
    for sample in (sample for sample in op.samples if sample.axes["B"]):
        kinds[(sample.axes["C"], *sample.options.items())] = sample
    for sample in kinds.values():
        picture = cases.enlarged(sample, 544, 960)
        for dtype in (torch.float16, torch.float32):
            args = cases.inputs(op, picture, dtype=dtype, device="meta")
            for backward in (False, True):
                support = op.backends["triton"]
                if support.why_not(args, backward=backward) or support.why_not_on((9, 0), backward=backward):
                    continue
                ours = _trial.like(op, args)
                token = _trial.on_trial.set(True)
                try:
                    launches = cases.launches(op, ours, dtype=dtype, capability=90, backward=backward)
                finally:
                    _trial.on_trial.reset(token)
                real = cases.launches(op, picture, dtype=dtype, capability=90, backward=backward)
                assert len(launches) == len(real) > 0
                for one, other in zip(launches, real, strict=True):
                    what = (op.name, sample.name, one.name)
                    ours_named, named = _loops.loops(one), _loops.loops(other)
                    shares = named.tiles is not None and other.programs < named.tiles
                    assert one.programs > 1, what
                    assert not shares or ours_named.tiles >= 2 * one.programs, what
                    if "frame" not in one.name:  # whose loop is over a line
                        assert ours_named.trip_counts == named.trip_counts, what
                    assert one.constants == other.constants, what
                    mine, theirs = _compile.source(one), _compile.source(other)
                    names = one.kernel.arg_names
                    differ = {names[place] for (place,) in mine.attrs.keys() ^ theirs.attrs.keys()}
                    assert mine.signature == theirs.signature, what
                    assert differ <= counts, what


def test_bad_settings_are_named(proving, trials, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("DITN_PROOF", "maybe")
    with pytest.raises(ValueError, match="DITN_PROOF is 'maybe', must be 'on' or 'off'"):
        OP(*small())
    assert main(["verify"]) == 2
    assert "DITN_PROOF is 'maybe'" in capsys.readouterr().err
    monkeypatch.setenv("DITN_PROOF", "on")
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        with pytest.raises(NotADirectoryError, match=f"the cache folder {file} is a file"):
            OP(*small())
        assert main(["verify"]) == 2
        assert f"the cache folder {file} is a file" in capsys.readouterr().err
    assert trials == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, where not even root can make a folder")
def test_where_nothing_can_be_written_verdicts_hold_for_the_process(proving, trials, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    with pytest.warns(RuntimeWarning, match="kept for this process only .*/proc/ditn-kernels") as caught:
        _ = [explain(OP, *small(dtype)) for dtype in (torch.float32, torch.float16, torch.float32)]
    assert len(caught) == 1
    assert len(trials) == 2


def test_a_folder_that_may_not_be_looked_at_hides_no_fault(proving, trials, monkeypatch) -> None:
    """As below a home of somebody else. Root may look anywhere, so that the system's answer is imitated."""
    trials.found.append("computes wrongly: the result is off")

    def guarded(original):
        def asked(path, *args, **kwargs):
            if path.is_relative_to(proving):
                raise PermissionError(13, "Permission denied")
            return original(path, *args, **kwargs)

        return asked

    for name in ("stat", "mkdir", "read_text"):
        monkeypatch.setattr(type(proving), name, guarded(getattr(type(proving), name)))
    with pytest.warns(RuntimeWarning, match="computes wrongly"):
        assert explain(OP, *small()).chosen != "triton"


def test_a_setting_that_is_no_folder_of_a_system_is_ignored(proving, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert _verdicts.folder() == tmp_path / ".cache" / "ditn-kernels"


def layer_norm_cases(device: torch.device, count: int) -> list[_proving.Case]:
    return [_proving.Case("layer_norm2d", SMALL, "triton", torch.float32, False, str(device))] * count


@pytest.mark.slow
def test_kernels_are_proved_in_a_process_of_their_own(proving, device) -> None:
    (found,) = _proving._prove(layer_norm_cases(device, 1), _proving._Children())
    assert found == Proof("layer_norm2d", "forward", "triton", "float32", "small", "", True)
    assert [one["fault"] for one in verdicts(proving)] == [""]


def _crashes(cases: list, sender) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _is_terminated(cases: list, sender) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(
    ("ends", "how", "is_verdict"), [(_crashes, "Segmentation fault", True), (_is_terminated, "Terminated", False)]
)
def test_a_process_that_crashes_is_a_verdict_one_that_is_ended_none(
    proving, device, monkeypatch, ends, how: str, is_verdict: bool
) -> None:
    monkeypatch.setattr(_proving, "_work", ends)
    (found,) = _proving._prove(layer_norm_cases(device, 1), _proving._Children())
    assert (found.fault, found.is_verdict) == (f"ends its process ({how})", is_verdict)
    assert [one["fault"] for one in verdicts(proving)] == [found.fault] * is_verdict


def _waits(cases: list, sender) -> None:
    sender.send(("", True))
    time.sleep(600)


@pytest.mark.slow
def test_an_interruption_ends_all_processes(proving, device, monkeypatch) -> None:
    """They are waited for by threads, which start no others and condemn nothing."""
    monkeypatch.setattr(_proving, "_work", _waits)
    monkeypatch.setattr(_proving, "_cases", lambda op, device: layer_norm_cases(device, 3))

    # A shell's background job is born deaf to it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    threading.Timer(5, signal.pthread_kill, [main, signal.SIGINT]).start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(prove(device, ["layer_norm2d", "tanh_affine"]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 60
    assert not verdicts(proving)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_process_that_ends_is_a_verdict_and_the_next_goes_on(proving, device, monkeypatch) -> None:
    class Here:
        """A process that is none: each is seen by what it sends and how it exits."""

        def __init__(self, target, args) -> None:
            self.target, self.args, self.exitcode = target, args, None

        def start(self) -> None:
            kind = ends.pop(0)
            if kind == "sends":
                self.args[1].send(("", True))
            self.exitcode = {"killed": -signal.SIGSEGV, "fails": 1}.get(kind, 0)

        def join(self) -> None:
            pass

    class Context:
        Pipe = staticmethod(_proving._context.Pipe)
        Process = Here

    ends = ["sends", "killed", "fails", "sends"]
    monkeypatch.setattr(_proving, "_context", Context)
    found = list(_proving._prove(layer_norm_cases(device, 4), _proving._Children()))
    assert [(one.fault, one.is_verdict) for one in found] == [
        ("", True),
        ("ends its process (Segmentation fault)", True),
        ("ends its process (exit status 1)", False),
        ("", True),
    ]
    assert [one["fault"] for one in verdicts(proving)] == ["ends its process (Segmentation fault)"]


def test_what_is_to_be_proved(proving, device, monkeypatch) -> None:
    """Every dtype and direction of every kernel that runs here, but nothing where nothing has to be proved."""
    tried = []
    monkeypatch.setattr(_proving, "_prove", lambda cases, children: iter(tried.extend(cases) or []))
    assert list(prove(device)) == []
    for op in REGISTRY.values():
        args = op.inputs(op.samples[0], dtype=torch.float16)
        for backward in (False, True):
            wanted = [
                name
                for name in ("triton", "cuda")
                if name in op.backends and not reasons_unproved(op, name, args, backward=backward)
            ]
            found = {
                one.backend
                for one in tried
                if (one.operator, one.dtype, one.backward) == (op.name, torch.float16, backward)
            }
            assert found == set(wanted), (op.name, backward)
    assert {one.dtype for one in tried} == {torch.float32, torch.float16, torch.bfloat16}
    count = len(tried)
    monkeypatch.setenv("DITN_PROOF", "off")
    assert list(prove(device)) == []
    assert list(prove("meta")) == []
    assert len(tried) == count


def test_verify_prints_a_table(monkeypatch, capsys) -> None:
    from ditn.commands import verify

    fault = "computes wrongly: dx has an error of 0.3"
    found = [
        Proof("gated_ffn", "forward", "triton", "float16", "patch", "", True),
        Proof("gated_ffn", "backward", "triton", "float16", "patch", "", True),
        Proof("gated_ffn", "backward", "triton", "float16", "map", fault, True),
        Proof("gated_ffn", "forward", "triton", "float16", "map", "", True),
    ]
    monkeypatch.setattr(verify, "prove", lambda device: iter(found))
    assert verify._proved(torch.device("cpu")) is False
    assert capsys.readouterr().out.splitlines() == [
        "gated_ffn             triton backward float16  1 of 2 kinds WRONG",
        f"  map: {fault}",
        "gated_ffn             triton forward  float16  2 kinds right",
    ]
    monkeypatch.setattr(verify, "prove", lambda device: iter(found[:2]))
    assert verify._proved(torch.device("cpu")) is True
