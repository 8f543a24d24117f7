"""Freed memory stays with a process that trains on the CPU."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import os, resource, torch
from patchcast.heap import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16, 2**20).add_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(2):
    print(keep_freed_memory(), min(faults() for _ in range(6)))
    os.environ.pop("MALLOC_ARENA_MAX", None)
"""
PAGES = 2**26 // 4096
"""Of 64 MiB, which the system clears one at a time, or 512 at once."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these parameters")
def test_memory_is_cleared_once() -> None:
    """Unless the user has chosen otherwise, by an environment variable of glibc's: so first, and then without it."""
    given = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run([sys.executable, "-c", COUNT], env=given, capture_output=True, text=True, check=True)
    is_kept, faults = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert is_kept == ("False", "True")
    assert int(faults[0]) >= PAGES // 600 > int(faults[1])
