#!/usr/bin/env bash
# Starts the job on all workers, or finds it running; shows its log and ends with its exit code, 255 if the
# connection was lost. The job does not end with the connection: the same command finds it again.
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "$0")/lib.sh"

output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0
on_worker all "bash $NAME/worker.sh run" | tee "$output" || status=$?
codes=$(sed -n 's/^mujax-launch: exit code \([0-9]*\)$/\1/p' "$output")
# gcloud has exit codes of its own, so that only what the workers say is the job's
if [ "$status" != 0 ] || [ -z "$codes" ]; then
  echo "$NAME: lost the connection" >&2
  exit 255
fi
worst=0
for code in $codes; do # of several workers: never again before again, again before finished
  case $code in
    1 | 2) exit "$code" ;;
    3) [ "$worst" != 0 ] || worst=3 ;;
    0) ;;
    *) worst=$code ;;
  esac
done
exit "$worst"
