#!/usr/bin/env bash
# Screens images as a Slurm job. Every task scores its share of a list of files, archives and URLs, one per line.
#
#     sbatch --ntasks=16 --gpus-per-task=1 --cpus-per-task=16 --wrap 'srun scripts/recipes/screen_slurm.sh shards.txt scores'
#
# Task 3 writes scores/3/, a folder of Parquet parts. To continue a stopped job, submit it again with the same number of
# tasks. A requeued job continues by itself. `npr report scores -o report.html` reads the folders of all tasks.
set -euo pipefail
list=$1 scores=$2
if [ "$(grep --count '' "$list")" -le "$SLURM_PROCID" ]; then
    echo "task $SLURM_PROCID has nothing to do: there are more tasks than lines in $list"
    exit
fi
mkdir -p "$scores"
split --number="r/$((SLURM_PROCID + 1))/$SLURM_NTASKS" "$list" | npr screen --files-from - --output "$scores/$SLURM_PROCID/"
