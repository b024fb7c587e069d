#!/bin/bash
# Train on two machines with four GPUs each: sbatch examples/slurm.sh
#SBATCH --job-name=inat-ft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

GPUS_PER_NODE=4
NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
FIRST_NODE=${NODES%%$'\n'*}

# srun starts torchrun once per node, and torchrun starts one process per GPU.
srun torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$FIRST_NODE:29500" \
    -m inat_ft train --mode full --batch-size 512 --name "slurm-$SLURM_JOB_ID" "$@"
