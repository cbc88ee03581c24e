#!/usr/bin/env bash
# Damages every kind of input, 2,000 cases each, and counts the outcomes: scripts/fuzz.sh [TARGET ...] [--cases N]
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

use_environment
export PYTHONPATH="$ROOT/tests" TF_CPP_MIN_LOG_LEVEL=3
exec "$PYTHON" -m fuzz "$@"
