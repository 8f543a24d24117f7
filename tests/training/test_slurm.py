"""The batch file for SLURM, with stand-ins for `srun` and `scontrol`: two tasks on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/bin/bash
shift  # the option of srun
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "$@" &
    tasks+=($!)
done
if [ -n "$ASK_ONCE_THERE_IS" ]; then
    until [ -e "$ASK_ONCE_THERE_IS" ]; do sleep 0.2; done
    kill -TERM "${tasks[@]}"
fi
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""
PROGRAMS = {
    "srun": SRUN,
    "scontrol": '#!/bin/bash\necho "$@" >> requeued\n',
    "patchcast": f'#!/bin/bash\nexec {sys.executable} -m patchcast "$@"\n',
}
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "patchcast",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "MASTER_ADDR": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_queues_itself_again_and_finishes(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def job(**extra: str) -> subprocess.CompletedProcess[str]:
        run = "--method mae --model test_vit --data digits --out run --steps 40 --batch_size 16 --device cpu"
        return subprocess.run(
            ["bash", str(ROOT / "recipes/slurm.sh"), *run.split(), "--log_every", "5", "--pictures", "false"],
            cwd=tmp_path,
            env={**os.environ, **JOB, "PATH": f"{programs}:{os.environ['PATH']}", **extra},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    asked = job(ASK_ONCE_THERE_IS="run/metrics.csv")
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert "asked to end (SIGTERM)" in asked.stdout + asked.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert not (tmp_path / "run" / "model.safetensors").exists()

    again = job()
    assert again.returncode == 0, again.stderr[-3000:]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert (tmp_path / "run" / "model.safetensors").exists()
