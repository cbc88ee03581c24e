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

# Types are checked on the wheel as installed: only there do configs/ and tf1_loader/ stand in the
# package. Without --wheel it is built from the sdist, so nothing stale from build/ gets in.
wheel="$(mktemp -d)"
trap 'rm -rf "$wheel"' EXIT
"$PYTHON" -m build --no-isolation --outdir "$wheel" . >"$wheel/log" || (cat "$wheel/log" && false)
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --target "$wheel/site" "$wheel"/*.whl
(cd "$wheel" && MYPYPATH="$wheel/site" "$bin/mypy" --config-file "$ROOT/pyproject.toml" \
  --cache-dir "$ROOT/.mypy_cache" -p mobilenet)

# A file's tests stay together: they share models. More workers than two cores do not pay, as each
# imports TensorFlow; the last -n counts.
"$PYTHON" -m pytest -n 2 --dist loadfile "${chosen[@]+"${chosen[@]}"}" "${rest[@]+"${rest[@]}"}"
