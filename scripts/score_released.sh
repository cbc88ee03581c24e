#!/usr/bin/env bash
# Scores released models, float and int8 after training, next to their published top-1: --data_dir PHOTOS [--weights FOLDER]
# [--calibration_dir OTHERS] [--csv scores.csv, which the same command continues]; benchmarks/released_models.py has all flags.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

use_environment
exec "$PYTHON" "$ROOT/benchmarks/released_models.py" "$@"
