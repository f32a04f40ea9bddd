# SPDX-License-Identifier: Apache-2.0
"""Lists of work, each item a function of its inputs alone, and who does them: this process, torchrun's ranks, or
Ray."""
