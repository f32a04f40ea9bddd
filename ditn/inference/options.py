# SPDX-License-Identifier: Apache-2.0
"""What an Upscaler is told in words. Without torch, so that the command line knows it at once."""

from __future__ import annotations

from typing import Literal, get_args

# The model that suits the image, in place of one that is named.
AUTO = "auto"
# What becomes of places where the output has nothing to do with the image (see `guard`).
Guard = Literal["repair", "warn", "off"]
GUARDS: tuple[str, ...] = get_args(Guard)
