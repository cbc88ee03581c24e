#!/usr/bin/env bash
# Starts N workers of one run on this machine: `train_multi_worker.sh N [trainer flags]`. Worker 0, the chief, writes the run folder.
# Worker I writes its output to LOG_DIR/worker_I.log (default: worker_logs). When one fails the others have GRACE seconds (30).
# Ctrl-C and SIGTERM let all workers save a state, for four times as long.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$0")/environment.sh"

count="${1:-}"
[[ "$count" =~ ^[1-9][0-9]?$ ]] || stop "$0: got '$count', expected the number of workers, 1 to 99; trainer flags may follow"
shift
[[ " $* " != *" --distribution_strategy"* ]] ||
  stop "--distribution_strategy: expected none, as the workers of one run train by multi_worker"
logs="${LOG_DIR:-worker_logs}"
grace="${GRACE:-30}"
mkdir -p "$logs" 2>/dev/null || stop "LOG_DIR: got '$logs', expected a folder that can be written"
use_environment

hosts="$("$PYTHON" -c '
import json, socket, sys
sockets = [socket.create_server(("localhost", 0)) for _ in range(int(sys.argv[1]))]
print(json.dumps(["localhost:%d" % s.getsockname()[1] for s in sockets]))
' "$count")"

workers=()
end_workers() {
  local pid
  for pid in "${workers[@]}"; do kill -"$1" "$pid" 2>/dev/null || true; done
}
# All workers save a state and end; those that still wait for others to start do not hear SIGTERM. Background jobs ignore SIGINT.
interrupt() {
  trap - TERM INT
  end_workers TERM
  (sleep $((4 * grace)) && end_workers KILL) &
  local pid killer=$!
  for pid in "${workers[@]}"; do wait "$pid" 2>/dev/null || true; done
  kill "$killer" 2>/dev/null || true
  exit "$1"
}
trap 'interrupt 143' TERM
trap 'interrupt 130' INT

for ((i = 0; i < count; i++)); do
  TF_CONFIG='{"cluster": {"worker": '"$hosts"'}, "task": {"type": "worker", "index": '"$i"'}}' \
    "$PYTHON" -m mobilenet.trainer --distribution_strategy multi_worker "$@" \
    >"$logs/worker_$i.log" 2>&1 &
  workers+=($!)
done

# After a failure the others find out by themselves within seconds and name the reason; then they are ended.
status=0
waited=0
while [ "${#workers[@]}" -gt 0 ]; do
  running=()
  for pid in "${workers[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      running+=("$pid")
    else
      one=0
      wait "$pid" 2>/dev/null || one=$? # without the line that a killed process costs
      [ "$status" -ne 0 ] || status=$one
    fi
  done
  workers=(${running[@]+"${running[@]}"})
  [ "$status" -eq 0 ] || waited=$((waited + 1))
  [ "$waited" -ne "$grace" ] || end_workers TERM
  [ "$waited" -ne $((grace + 15)) ] || end_workers KILL
  sleep 1
done
of_tensorflow='^[IWEF][0-9]{4} |^Additional GRPC|^:[A-Z]+:' # on connections to workers that have ended
[ "$status" -eq 0 ] || echo "a worker ended with status $status; last lines by worker:" >&2
for ((i = 0; i < count; i++)); do
  [ "$status" -eq 0 ] || echo "worker $i: $(grep -vE "$of_tensorflow" "$logs/worker_$i.log" | tail -n 1)" >&2
done
[ "$status" -ne 0 ] || cat "$logs/worker_0.log"
exit "$status"
