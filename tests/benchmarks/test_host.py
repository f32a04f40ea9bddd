# SPDX-License-Identifier: Apache-2.0
"""What a call costs on the host, by counting and not by a clock."""

from __future__ import annotations

import pytest
import torch

import ditn
from benchmarks import host

# Python functions that a call of DITN-Real calls. On a GPU they may not take as long as a small image's kernels.
MOST_CALLS = {"triton": 300, "cuda": 200}


@pytest.mark.parametrize("backend", MOST_CALLS)
def test_a_call_decides_nothing_twice(backend: str) -> None:
    model = ditn.DITN_Real(4).eval().requires_grad_(False).half()
    assert host.of_a_gpu(model, backend, rounds=1)["calls"] <= MOST_CALLS[backend]


def test_a_call_on_the_cpu() -> None:
    model = ditn.DITN_Real(4).eval().requires_grad_(False)
    image = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        expected = model(image)
        assert host.calls(lambda: model(image)) <= 200
        # Nothing of the call is left out: the last kernel gives the result.
        assert torch.equal(host.kernels_of(model, image)[-1](), expected)


def test_calls_are_counted() -> None:
    def one() -> None:
        return None

    assert host.calls(lambda: (one(), one())) == 3
