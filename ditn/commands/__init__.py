# SPDX-License-Identifier: Apache-2.0
"""The command line: `cli.py` is the table of sub-commands, and each has a module of its name with `run`. What
they take is in `arguments`."""
