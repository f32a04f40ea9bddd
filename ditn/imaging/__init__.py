# SPDX-License-Identifier: Apache-2.0
"""Images on disk and as arrays: reading, writing, resampling, comparing. Knows nothing of networks; everything above
may use it."""
