# SPDX-License-Identifier: Apache-2.0
"""Tools for kernels on GPUs: machine code counted, launch configurations tuned, counters, sanitizers. Those with a
`main` are commands, such as `python -m benchmarks.tools.tune`."""
