# SPDX-License-Identifier: Apache-2.0
"""What an export is told in words. Without torch, so that the command line knows it at once."""

from __future__ import annotations

OPSETS = range(20, 24)  # from the first that has Gelu to the last that torch's exporter writes
# The formats, which `formats` writes.
FORMAT_SUMMARIES = {
    "onnx": "ONNX, for ONNX Runtime, OpenVINO and others",
    "trt-onnx": "ONNX with nodes for csrc/tensorrt's plugins",
    "pt2": "torch.export program of this package's operators",
    "aoti": "AOTInductor package, for Python and C++",
}
