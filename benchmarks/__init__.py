"""Speed and memory, side by side with the software people would use instead. `python -m benchmarks --help`.

The accuracy rule and the maps of the peers' weights are those of the tests, not copies of them.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
