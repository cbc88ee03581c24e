#!/usr/bin/env bash
# Checks the types of the package, of the benchmarks and of the site's code by mypy --strict; mypy flags may follow.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

# configs/ and tf1_loader/ are part of the package only once it is installed: mypy gets a copy.
use_environment
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
cp -R "$ROOT/mobilenet" "$site/"
cp -R "$ROOT/configs" "$ROOT/tf1_loader" "$site/mobilenet/"
cd "$site"
check() {
  MYPYPATH="$site:$ROOT/benchmarks:$ROOT/scripts/site" "$PYTHON" -m mypy --config-file "$ROOT/pyproject.toml" "$@"
}
check --cache-dir "$ROOT/.mypy_cache" -p mobilenet "$@"
check --cache-dir "$ROOT/.mypy_cache" "$ROOT"/benchmarks/*.py "$@"
check --cache-dir "$ROOT/.mypy_cache" "$ROOT"/scripts/site/*.py "$@"
