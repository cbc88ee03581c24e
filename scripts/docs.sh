#!/usr/bin/env bash
# Builds the documentation site into build/site, without warnings; `docs.sh serve` shows it at http://127.0.0.1:8000 and follows
# changes. MkDocs flags may follow.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

command=(build --strict) # not with --quiet, which hides warnings from --strict
if [ "${1:-}" = serve ]; then
  command=(serve)
  shift
fi
make_environment docs
"$PYTHON" -c "import mkdocs" 2>/dev/null || stop "$PYTHON: expected Python 3.11 or newer, which the site is built by"
export NO_MKDOCS_2_WARNING=1 # the version is in constraints.txt
"$PYTHON" -m mkdocs "${command[@]}" --config-file "$ROOT/scripts/site/mkdocs.yml" "$@"
[ "${command[0]}" = serve ] || echo "$ROOT/build/site/index.html (its search needs a server: bash scripts/docs.sh serve)"
