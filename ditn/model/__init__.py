# SPDX-License-Identifier: Apache-2.0
"""The network: its configuration, its layers, and its weights from and to files. The arithmetic is in `ditn_kernels`;
`network.py` is where to begin."""
