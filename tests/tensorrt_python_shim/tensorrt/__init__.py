# SPDX-License-Identifier: Apache-2.0
"""As much of TensorRT's Python package as the plugins of ditn_kernels/tensorrt_plugins.py touch, restated from its
documentation. For tests; it builds and runs nothing."""

from __future__ import annotations

import enum

__version__ = "10.9.0"


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    BF16 = 7


float32, float16, int8, bfloat16 = DataType.FLOAT, DataType.HALF, DataType.INT8, DataType.BF16
