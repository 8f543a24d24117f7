#!/bin/bash
# Pretrain on several machines under SLURM:  sbatch recipes/slurm.sh --method mae --model vit_base_patch16_224 ...
#SBATCH --job-name=patchcast
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
# Two minutes before the end every process is asked to end, and saves.
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append

srun --kill-on-bad-exit=1 patchcast pretrain \
    --devices "$SLURM_NTASKS_PER_NODE" --nodes "$SLURM_NNODES" "$@"
ended=$?

# 143: asked to end, and saved. The same job goes on from there.
if [ "$ended" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$ended"
