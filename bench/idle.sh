#!/bin/sh
# idle.sh QVM DISK: memory and wake-ups of the supervisor while its guest does nothing. Root; the host
# is a namespace of this script's own.
set -eu
[ "${INSIDE:-}" ] || exec env INSIDE=1 unshare --net "$0" "$@"

directory=$(mktemp -d)
trap 'kill "$feeder" 2>/dev/null || true; rm -rf "$directory"' EXIT
export QVM_RUN_DIR="$directory/run" QVM_CACHE_DIR="$directory/cache"
mkfifo "$directory/stdin"
sleep 120 >"$directory/stdin" &
feeder=$!
"$1" run -q -D --net isolated "$2" <"$directory/stdin" >/dev/null 2>"$directory/log" &
qvm=$!
for _ in $(seq 600); do
    grep -q 'guest agent answers' "$directory/log" && break
    sleep 0.1
done
sleep 3
switches() { awk '/ctxt_switches/ { n += $2 } END { print n }' "/proc/$qvm/status"; }
before=$(switches)
sleep 10
after=$(switches)
grep -E '^(VmRSS|RssAnon|RssFile)' "/proc/$qvm/status"
awk '/^Pss:/ { print "Pss:    " $2 " kB" }' "/proc/$qvm/smaps_rollup"
echo "wake-ups in 10 s: $((after - before))"
kill -TERM "$qvm"
wait "$qvm" || true
