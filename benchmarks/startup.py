"""How long the command line takes to start, against importing Lightning's.

python -m benchmarks.startup
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from time import perf_counter

from benchmarks.harness import interleaved, options, ratios, report, verdict
from experiments.run_folder import REPOSITORY


def process_seconds(*args: str) -> Callable[[], float]:
    """A case that runs Python with these arguments and returns the whole process's seconds."""

    def case() -> float:
        start = perf_counter()
        subprocess.run([sys.executable, *args], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
        return perf_counter() - start

    return case


def main() -> int:
    args = options(__doc__).parse_args()
    cases = {
        "train.py": process_seconds("train.py", "fit", "-c", "configs/vqa/easy_vqa.yaml", "--print_config"),
        "import": process_seconds("-c", "import lightning.pytorch.cli"),
    }
    times = interleaved(cases, args.repeats)
    report("train.py fit … --print_config against import lightning.pytorch.cli", times, "import")
    return verdict(ratios(times, "import")["train.py"], args.check)


if __name__ == "__main__":
    raise SystemExit(main())
