# SPDX-License-Identifier: Apache-2.0
"""The backend "triton": `<op>.py` has an operator's kernels and the function `forward`, `<op>_backward.py` those of its
gradient and the function `backward`.

Kernel files import Triton, so nothing imports them before a call needs them. README.md has the reading order.
"""
