#!/usr/bin/env bash
# Screening as a Slurm job: every task takes its share of a list of files, archives and URLs, one a line.
#
#     sbatch --ntasks=16 --gpus-per-task=1 --cpus-per-task=16 --wrap 'srun scripts/screen_slurm.sh shards.txt scores'
#
# Task 3 writes scores/3/, a folder of Parquet parts. The same job, with as many tasks, goes on with one that was
# stopped, and requeued jobs do by themselves. `npr report scores -o report.html` reads all of the folders.
set -euo pipefail
list=$1 scores=$2
mkdir -p "$scores"
split --number="r/$((SLURM_PROCID + 1))/$SLURM_NTASKS" "$list" | npr screen --files-from - --output "$scores/$SLURM_PROCID/"
