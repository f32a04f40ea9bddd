# SPDX-License-Identifier: Apache-2.0
"""The oracle: the network as published, and how much a result may differ. What tests and suites compare with;
it imports nothing of the other houses."""
