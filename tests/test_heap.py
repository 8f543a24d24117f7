"""Freed memory stays with a process that trains on the CPU."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from patchcast.heap import keep_freed_memory
print(keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16, 2**20).add_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(6)))
"""
PAGES = 2**26 // 4096
"""Of 64 MiB, which the system clears one at a time, or 512 at once."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these parameters")
@pytest.mark.parametrize("chosen", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_memory_is_cleared_once(chosen: dict[str, str]) -> None:
    """Unless the user has chosen otherwise."""
    given = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", **chosen}
    done = subprocess.run([sys.executable, "-c", COUNT], env=given, capture_output=True, text=True, check=True)
    is_kept, faults = done.stdout.split()
    assert is_kept == str(not chosen)
    assert (int(faults) < PAGES // 600) == (not chosen)
