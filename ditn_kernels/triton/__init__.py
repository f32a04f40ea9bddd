# SPDX-License-Identifier: Apache-2.0
"""The backend "triton": one file per operator, with its kernels and the functions `forward` and `backward`.

Nothing outside imports these files before a call needs them, since they import Triton. README.md has the reading order.
"""
