# SPDX-License-Identifier: Apache-2.0
"""The harness: what all suites share. Who is timed (networks, providers), how (processes that take turns, one
stopwatch), with what (cases, images), and where results go."""
