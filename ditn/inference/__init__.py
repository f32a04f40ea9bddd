# SPDX-License-Identifier: Apache-2.0
"""Images of any size through a network: tiles within a bound of memory, alpha, a guard against wrong output, and the
choice of weights by what an image looks like. `upscaler.py` is where to begin."""
