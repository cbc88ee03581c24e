#!/usr/bin/env bash
# Shows the curves of all runs, or of MODEL_DIR; TensorBoard flags may follow.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

use_environment
exec "$PYTHON" -m tensorboard.main --logdir "${MODEL_DIR:-$ROOT/runs}" "$@"
