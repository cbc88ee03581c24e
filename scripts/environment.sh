# Sourced by the other scripts. `make_environment [dev]` creates .venv in the checkout and installs the
# package with the tested versions; `use_environment` uses an existing one. Both set PYTHON.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

stop() {
  echo "$*" >&2
  exit 2
}

# The first Python of a supported version; 3.11 first, as most tests run with it.
find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3.10 python3; do
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  stop "python3: expected version 3.10, 3.11, 3.12 or 3.13; apt-get install python3 python3-venv on Debian 12 or 13, Ubuntu 22.04 or 24.04"
}

fingerprint() {
  cat "$ROOT/pyproject.toml" "$ROOT/setup.py" "$ROOT/constraints.txt" | cksum
  echo "$ROOT"
}

make_environment() {
  local extra="${1:-}" name stamp
  stamp="$ROOT/.venv/installed${extra:+-$extra}"
  PYTHON="$ROOT/.venv/bin/python"
  if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint)" ]; then
    return
  fi
  if [ ! -x "$PYTHON" ] || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    name="$(find_python)"
    "$name" -c 'import ensurepip, venv' 2>/dev/null ||
      stop "$name: expected its venv module; apt-get install $("$name" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    rm -rf "$ROOT/.venv"
    "$name" -m venv "$ROOT/.venv"
  fi
  echo "Installing into $ROOT/.venv (takes minutes; repeated only when the requirements change)" >&2
  "$PYTHON" -m pip install --quiet --disable-pip-version-check \
    -c "$ROOT/constraints.txt" -e "$ROOT${extra:+[$extra]}"
  fingerprint >"$ROOT/.venv/installed"
  fingerprint >"$stamp"
}

use_environment() {
  PYTHON="${PYTHON:-$ROOT/.venv/bin/python}"
  command -v "$PYTHON" >/dev/null || PYTHON="$(find_python)"
}

# train_model NAME TEST_BATCH train|test [trainer flags]
train_model() {
  local name="$1" batch="$2" mode="${3:-}"
  shift $(($# < 3 ? $# : 3))
  use_environment
  case "$mode" in
    train)
      [ -n "${DATA_DIR:-}" ] || [[ " $* " == *" --data_dir"* ]] ||
        stop "DATA_DIR: expected the folder of ImageNet; DATA_DIR=/data/tensorflow_datasets $0 train"
      exec "$PYTHON" -m mobilenet.trainer --model_name "$name" --dataset_name imagenet2012 \
        ${DATA_DIR:+--data_dir "$DATA_DIR"} --model_dir "${MODEL_DIR:-$ROOT/runs/${name}_imagenet2012}" \
        --stages train "$@"
      ;;
    test)
      exec "$PYTHON" -m mobilenet.trainer --model_name "$name" --dataset_name digits \
        --model_dir "${MODEL_DIR:-$ROOT/runs/${name}_script_test}" --overwrite --stages train \
        --epochs 2 --batch_size "$batch" --image_size 32 --width_multiplier 0.25 "$@"
      ;;
    *) stop "$0: got '$mode', expected train or test; DATA_DIR and MODEL_DIR set the folders, trainer flags may follow" ;;
  esac
}

# eval_model NAME [evaluator flags]
eval_model() {
  local name="$1"
  shift
  use_environment
  local model="${MODEL_DIR:-$ROOT/runs/${name}_imagenet2012}/train"
  exec "$PYTHON" -m mobilenet.evaluator --model "$model" --dataset_name "${DATASET_NAME:-imagenet2012}" \
    ${DATA_DIR:+--data_dir "$DATA_DIR"} "$@"
}
