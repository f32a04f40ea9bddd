# SPDX-License-Identifier: Apache-2.0
"""Networks that a user might pick instead: random weights, for timing only.

SwinIR-light and ELAN-light are the published networks. "SwinIR, 8 layers" and "ELAN, 8 blocks" are this project's own
reductions to the depth of DITN-Real, 4 ITLs and 4 SALs; no paper defines them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.harness.peers.elan import ELAN
from benchmarks.harness.peers.swinir import SwinIR

PEERS: Mapping[str, Callable[[int], SwinIR | ELAN]] = {
    "swinir-light": SwinIR,
    "elan-light": ELAN,
    "swinir-8-layers": partial(SwinIR, depths=(4, 4)),
    "elan-8-blocks": partial(ELAN, blocks=8),
}
REDUCED = ("swinir-8-layers", "elan-8-blocks")
