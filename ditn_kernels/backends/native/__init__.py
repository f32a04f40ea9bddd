# SPDX-License-Identifier: Apache-2.0
"""The backends "cpp" and "cuda": the compiled libraries, whose source is in `csrc`."""
