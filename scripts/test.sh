#!/usr/bin/env bash
# Installs into .venv, checks style and types, runs the tests; --all adds the slow ones, the rest goes to pytest.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

make_environment dev
cd "$ROOT"
bin="$ROOT/.venv/bin"

chosen=(-m "not slow")
rest=()
for word in "$@"; do
  if [ "$word" = --all ]; then chosen=(); else rest+=("$word"); fi
done

"$bin/ruff" check .
"$bin/ruff" format --check .

bash scripts/types.sh

# tests/conftest.py groups the tests by what they share. More workers than two cores do not pay, as
# each imports TensorFlow; the last -n counts.
"$PYTHON" -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations=25 \
  "${chosen[@]+"${chosen[@]}"}" "${rest[@]+"${rest[@]}"}"
