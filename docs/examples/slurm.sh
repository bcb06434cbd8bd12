#!/bin/bash
# Measures several nodes of a cluster by a Slurm job array: each task takes one node and leaves one record.
#
#   sbatch --array=0-7 docs/examples/slurm.sh
#   ttft report ttft-records/*.jsonl --html machines.html
#
# `ttft` must be in PATH on the nodes; a static binary (tests/static.sh) needs nothing else there.
#SBATCH --job-name=ttft
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
set -euo pipefail

preset=${TTFT_SCENARIO:-quick}
mkdir -p ttft-records
# No two tasks have the same job and task number. A task that was requeued has its old ones, and continues its record.
record=ttft-records/$preset-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID.jsonl
# The weights lie on the node's own disk, unless TTFT_WEIGHTS says where, and are removed at the end.
own=${TMPDIR:-/tmp}/ttft-weights-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID
export TTFT_WEIGHTS=${TTFT_WEIGHTS:-$own}

ttft doctor
if [ -s "$record" ]; then
    ttft bench --scenario "$preset" --resume "$record"
else
    ttft bench --scenario "$preset" --out "$record"
fi
rm -rf "$own"
