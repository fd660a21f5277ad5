#!/usr/bin/env bash
# One run on several GPUs under Slurm, one process for each:
#
#     sbatch examples/launch/slurm.sh --dataset tissuemnist --model densenet121 --out runs/tissue
#
# Two minutes before its time is over, or when it is pre-empted, the job saves its state, puts itself
# back into the queue and goes on from there. The folder of --out must be one that all nodes see.
#SBATCH --job-name=flaxmed
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

code=0
srun --kill-on-bad-exit=1 flaxmed train --distributed "$@" || code=$?
# 143: terminated with the state saved. The same command goes on with the run.
if [ "$code" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
