# SPDX-License-Identifier: Apache-2.0
"""`python -m ditn` is `ditn`."""

import sys

from ditn.commands.cli import main

sys.exit(main())
