# SPDX-License-Identifier: Apache-2.0
"""Films, animations and numbered pictures: frames out of them, through an Upscaler, and into others. `work.py` is where
to begin. Films need PyAV, the extra `video`."""
