#!/usr/bin/env bash
# Installs into .venv and takes MobileNetV1 from training to a verified int8 file; trainer flags may follow.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

make_environment
cd "$ROOT"
exec "$PYTHON" -m mobilenet.trainer --model_name mobilenet_v1 "$@"
