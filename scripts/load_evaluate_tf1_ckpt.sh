#!/usr/bin/env bash
# Loads a TF1 checkpoint (prefix, folder, .npz or released .tgz) and evaluates it, with Google's figure beside it
# where it is a released model: CHECKPOINT [evaluator flags]; DATASET_NAME and DATA_DIR say on what.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

[ $# -gt 0 ] || stop "$0: expected a checkpoint; $0 mobilenet_v1_1.0_224.tgz --dataset_name imagenet2012 --data_dir /data"
use_environment
checkpoint="$1"
shift
aside="$(mktemp -d)"
trap 'rm -rf "$aside"' EXIT
"$PYTHON" -m mobilenet.tf1_loader --checkpoint "$checkpoint" --output "$aside/model"
"$PYTHON" -m mobilenet.evaluator --model "$aside/model" --dataset_name "${DATASET_NAME:-imagenet2012}" \
  ${DATA_DIR:+--data_dir "$DATA_DIR"} "$@"
