"""What finds the known difference of an organism: every architecture, text and seed in one table.

    python examples/benchmarks/organisms.py --json organisms.json
    python examples/benchmarks/organisms.py --quick       # one of everything, under two minutes

`organism_table` says what is in the table; what is done is kept in `--out`, and the same command
goes on behind it.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Before this folder, in which this file has the name of the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from organism_table import main

    main(sys.argv[1:])
