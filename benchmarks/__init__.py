# SPDX-License-Identifier: Apache-2.0
"""What is measured: the suites, each a command (`python -m benchmarks.cpu`), and behind them four houses: `oracle`,
`harness`, `tools` and `report`. Imports point from the suites to the houses, and in these from right to left."""
