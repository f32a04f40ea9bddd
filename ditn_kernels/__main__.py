# SPDX-License-Identifier: Apache-2.0
"""`python -m ditn_kernels`: versions, and the table of operators and backends with every reason."""

from __future__ import annotations

from ditn_kernels._info import info


def main() -> None:
    facts = info()
    for name, value in facts["versions"].items():
        print(f"{name:14} {value or 'not installed'}")
    print(f"{'device':14} {facts['device']}, {', '.join(facts['gpus']) or 'no GPU'}, {facts['threads']} CPU threads")
    for operator, directions in facts["operators"].items():
        for direction, backends in directions.items():
            print(f"\n{operator} {direction}")
            for backend, reasons in backends.items():
                print(f"  {backend:7} {', '.join(reasons) or 'can run'}")


if __name__ == "__main__":
    main()
