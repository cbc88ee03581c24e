#!/usr/bin/env bash
# Evaluates what train_mbnv1.sh trained (MODEL_DIR, DATASET_NAME, DATA_DIR); evaluator flags may follow.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

eval_model mobilenet_v1 "$@"
