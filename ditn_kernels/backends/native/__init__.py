# SPDX-License-Identifier: Apache-2.0
"""The backends "cpu" and "cuda": the compiled libraries, whose source is in `csrc`."""
