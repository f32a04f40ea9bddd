# SPDX-License-Identifier: Apache-2.0
"""The report: tables in README.md and docs/, and plots, made from `benchmarks/results/` by `python -m
benchmarks.report`."""
