#!/usr/bin/env bash
# Loads a TF1 checkpoint (prefix, folder, .npz or released .tgz) and evaluates it; for a released model it also prints the
# published accuracy: CHECKPOINT [evaluator flags]. DATASET_NAME and DATA_DIR select the data.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

[ $# -gt 0 ] || stop "$0: expected a checkpoint; $0 mobilenet_v1_1.0_224.tgz --dataset_name imagenet2012 --data_dir /data"
use_environment
checkpoint="$1"
shift
temporary="$(mktemp -d)"
trap 'rm -rf "$temporary"' EXIT
"$PYTHON" -m mobilenet.tf1_loader --checkpoint "$checkpoint" --output "$temporary/model"
"$PYTHON" -m mobilenet.evaluator --model "$temporary/model" --dataset_name "${DATASET_NAME:-imagenet2012}" \
  ${DATA_DIR:+--data_dir "$DATA_DIR"} "$@"
