"""What starting costs: processor time of `patchcast --help`, and of `import patchcast` beside `import timm`.

    python benchmarks/startup.py

Each in a fresh process, by turns; the fastest of the turns counts, because the first ones read files from the disk.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

CASES = {
    "patchcast --help": ["-m", "patchcast", "--help"],
    "import patchcast": ["-c", "import patchcast"],
    "import timm": ["-c", "import timm"],
}


def processor_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.turns):
        for name, arguments in CASES.items():
            taken[name].append(processor_seconds(arguments))
    for name, times in taken.items():
        print(f"{name}: {min(times):.2f} s of processor time")
    print(f"import patchcast / import timm: {min(taken['import patchcast']) / min(taken['import timm']):.2f}")


if __name__ == "__main__":
    main()
