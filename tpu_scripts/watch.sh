#!/usr/bin/env bash
# Says each state that the slice comes to, until it is there (0) or will never be (1).
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "$0")/lib.sh"

last=
while :; do
  now=$(state)
  [ "$now" = "$last" ] || echo "$(date '+%F %T') $NAME: $now"
  last=$now
  case $now in
    ACTIVE) exit 0 ;;
    SUSPENDED | FAILED | NONE) exit 1 ;;
  esac
  sleep "$POLL_SECONDS"
done
