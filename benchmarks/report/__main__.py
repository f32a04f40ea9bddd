# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.report`."""

import sys

from benchmarks.report.pages import main

if __name__ == "__main__":
    sys.exit(main())
