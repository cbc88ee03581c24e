#!/usr/bin/env bash
# Prunes channels in stages by the recipe of ivclab/Multistage_Pruning: NAME 8stage|16stage, then trainer flags (DATA_DIR, MODEL_DIR).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

name="${1:-}" mode="${2:-}"
shift $(($# < 2 ? $# : 2))
case "$mode" in
  8stage) stages=7 ratio=0.875 epochs=30 end=0.13333 ;;
  16stage) stages=15 ratio=0.9375 epochs=15 end=0.26667 ;;
  *) stop "$0: got '$name $mode', expected a model and 8stage or 16stage, as in mobilenet_v1 8stage" ;;
esac
use_environment
# Each stage prunes for four epochs and recovers in the others; its learning rate starts at 0.01.
exec "$PYTHON" -m mobilenet.trainer --model_name "$name" --dataset_name imagenet2012 \
  ${DATA_DIR:+--data_dir "$DATA_DIR"} --model_dir "${MODEL_DIR:-$ROOT/runs/${name}_$mode}" --stages train,prune \
  --pruning channel --channel_ratio "$ratio" --channel_stages "$stages" --round_to 1 --importance magnitude \
  --pruning_schedule polynomial --reconstruct 0 --pruning_end "$end" --pruning_frequency 2000 --prune_epochs "$epochs" --prune_lr 0.01 --prune_keep_best \
  --override prune.batch_size=256 --override prune.optimizer_name=momentum --override prune.op_momentum=0.9 \
  --override prune.learning_scheduler_name=exponential --override prune.lr_decay_rate=0.96 \
  --override prune.lr_decay_epochs=1 --override prune.label_smoothing=0 --override prune.ma_decay_rate=0 \
  --distill none "$@"
