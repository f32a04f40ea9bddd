# SPDX-License-Identifier: Apache-2.0
"""The command line: `cli.py` is the table of sub-commands, and each has a module of its name with `add_arguments` and
`run`."""
