#!/usr/bin/env bash
# Trains MobileNetV2. `train`: ImageNet by its published recipe (DATA_DIR, MODEL_DIR); `test`: digits, two short epochs.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

train_model mobilenet_v2 4 "$@"
