"""Every fifth of scikit-learn's digits: most of a small run on all of them is reading images, not what is tested.

`python -m tests.few` is `patchcast` with them, for tests that start processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

from patchcast.data.digits import PACKAGED, DigitsStore

ALL = PACKAGED["digits"]


def _fifth(split: Callable[[], DigitsStore]) -> DigitsStore:
    whole = split()
    return DigitsStore(whole.name, whole.pixels[::5], whole.labels[::5], whole.rows[::5])


@contextmanager
def few_digits() -> Iterator[None]:
    """The source "digits" has 288 training and 72 test images, in this process and those that it forks."""
    with patch.dict(PACKAGED, digits={name: partial(_fifth, split) for name, split in ALL.items()}):
        yield


if __name__ == "__main__":
    from patchcast.cli import main

    with few_digits():
        sys.exit(main(sys.argv[1:]))
