# SPDX-License-Identifier: Apache-2.0
"""The backend "triton": `<op>.py` has an operator's kernels and the function `forward`, `<op>_backward.py` those of its
gradient and the function `backward`.

Nothing outside imports these files before a call needs them, since they import Triton. README.md has the reading order.
"""
