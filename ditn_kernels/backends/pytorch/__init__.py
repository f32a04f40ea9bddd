# SPDX-License-Identifier: Apache-2.0
"""The backend "torch": plain PyTorch, the operators' own definitions in `ditn_kernels/ops`."""
