# SPDX-License-Identifier: Apache-2.0
"""`ditn warmup`, and what is said of a first call."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import triton

from ditn.commands.cli import main
from ditn_kernels.backends.triton import _compiling


def test_warmup_says_what_it_did(capsys) -> None:
    assert main(["warmup", "--device", "cpu", "--size", "17x9", "8x8", "--training"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" on cpu")[0] for line in lines if " on cpu" in line] == [
        "ditn-real-x4 float32 17x9",
        "ditn-real-x4 float32 8x8",
    ]
    assert lines.count("  nothing had to be compiled") == 2


def test_warmup_takes_sizes_only() -> None:
    with pytest.raises(SystemExit):
        main(["warmup", "--size", "17"])


@pytest.fixture
def compile_kernel(monkeypatch):
    """What Triton's compiler does at its end, as seen by the listener that was set."""
    heard: list[str] = []
    monkeypatch.setattr(_compiling, "compilations", [])
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda **facts: heard.append(facts["src"].fn.__name__))
    _compiling.listen()

    def compile_kernel(name: str, module: str, *, cached: bool) -> list[str]:
        source = SimpleNamespace(fn=SimpleNamespace(__name__=name, __module__=module))
        times = triton.knobs.CompileTimes(500_000, [("ttir", 500_000), ("cubin", 1_000_000)], 0)
        triton.knobs.compilation.listener(src=source, metadata={}, metadata_group={}, times=times, cache_hit=cached)
        return heard

    return compile_kernel


def test_a_compilation_is_said_once_with_its_time(compile_kernel, caplog) -> None:
    caplog.set_level(logging.WARNING, logger="ditn_kernels")
    module = "ditn_kernels.backends.triton.gated_ffn"
    compile_kernel("_gated_ffn_fwd_kernel", module, cached=True)
    assert not caplog.messages
    compile_kernel("_gated_ffn_bwd_kernel", module, cached=False)
    heard = compile_kernel("_tanh_affine_fwd_kernel", module, cached=False)
    assert caplog.messages == [
        "compiled the Triton kernel gated_ffn_bwd in 2.0 s; it stays on disk for the next time, "
        "and `ditn warmup` does this ahead",
        "compiled the Triton kernel tanh_affine_fwd in 2.0 s",
    ]
    assert [one.cached for one in _compiling.compilations] == [True, False, False]
    assert len(heard) == 3


def test_other_packages_kernels_are_not_ours(compile_kernel, caplog) -> None:
    heard = compile_kernel("_softmax", "elsewhere", cached=False)
    assert heard == ["_softmax"]
    assert not _compiling.compilations
    assert not caplog.messages
