#!/usr/bin/env bash
# Evaluate on the GPUs of one or several machines; on a machine without a GPU, in processes on its CPUs.
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
#
# With several machines, run it on each, with GPUS per machine and NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3

exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --nproc-per-node="$gpus" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
