"""What ``import fedkd`` costs on top of ``import lightning``, in alternating fresh processes.

python benchmarks/import_time.py [RUNS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import time
start = time.perf_counter(); import lightning
middle = time.perf_counter(); import fedkd
print(middle - start, time.perf_counter() - middle)
"""


def main() -> None:
    """Print the median and spread of both, and the added seconds."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    rows = [
        [float(x) for x in subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True).stdout.split()]
        for _ in range(runs)
    ]
    for name, column in zip(("import lightning", "then import fedkd"), zip(*rows, strict=True), strict=True):
        print(f"{name}: median {statistics.median(column):.3f} s, {min(column):.3f} to {max(column):.3f}, {runs} runs")


if __name__ == "__main__":
    main()
