#!/usr/bin/env bash
# From nothing to a finished job: creates the slice, sets it up, runs the job and fetches its results every
# FETCH_SECONDS; when the slice is taken away, all over again, from what was fetched last.
#
# Ends with 0 when the job has finished (the slice is given back then), with 1 or 2 when it is never to be run
# again, and otherwise when it has failed more than RETRIES times. Exit code 75 and a slice that was taken away are
# no failures, and an hour of running clears them. Ctrl-C leaves slice and job alone; the same command goes on.
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "$0")/lib.sh"
here=$(dirname "$0")

say() { echo "$(date '+%F %T') $NAME: $*" >&2; }

failures=0
fail() { # WHAT CODE
  failures=$((failures + 1))
  if [ "$failures" -gt "$RETRIES" ]; then
    say "$1; given up after $RETRIES retries. Give the slice back with: $here/delete.sh $env_file"
    exit "$2"
  fi
  say "$1; retry $failures of $RETRIES"
}

work() { # run.sh with a fetch now and then; leaves its exit code in $code
  local next=$((SECONDS + FETCH_SECONDS)) run
  "$here/run.sh" "$env_file" 8>&- & # it may outlive this loop, and the lock is the loop's
  run=$!
  while kill -0 "$run" 2>/dev/null; do
    sleep "$POLL_SECONDS"
    if [ "$SECONDS" -ge "$next" ]; then
      "$here/fetch.sh" "$env_file" || say "could not fetch"
      next=$((SECONDS + FETCH_SECONDS))
    fi
  done
  code=0
  wait "$run" || code=$?
}

env_file=$1
exec 8>>"$env_file.lock" # two of these would delete each other's slices
flock -n 8 || {
  echo "$NAME: recreate.sh runs already for $env_file" >&2
  exit 2
}
is_set_up=0
while :; do
  now=$(state)
  case $now in
    ACTIVE) ;;
    NONE)
      say "asks for a slice"
      is_set_up=0
      "$here/create.sh" "$env_file" || exit 1 # gcloud has said why
      sleep "$POLL_SECONDS"
      continue
      ;;
    SUSPENDED | FAILED)
      [ "$now" = SUSPENDED ] || fail "the request has failed" 1
      say "$now; the slice is created again"
      "$here/delete.sh" "$env_file" || sleep "$POLL_SECONDS"
      continue
      ;;
    *) # in the queue, being made or taken away, or gcloud could not tell
      sleep "$POLL_SECONDS"
      continue
      ;;
  esac
  if [ "$is_set_up" = 0 ]; then
    if ! "$here/setup.sh" "$env_file"; then
      [ "$(state)" != ACTIVE ] || fail "could not be set up" 1
      sleep "$POLL_SECONDS"
      continue
    fi
    is_set_up=1
  fi
  say "runs"
  start=$SECONDS
  work
  [ $((SECONDS - start)) -lt 3600 ] || failures=0
  is_fetched=1
  "$here/fetch.sh" "$env_file" || is_fetched=0
  case $code in
    0 | 3)
      if [ "$is_fetched" = 1 ]; then
        say "finished; results are in $RESULTS"
        "$here/delete.sh" "$env_file"
        exit 0
      fi
      say "finished, but its results could not be fetched"
      code=1
      ;;
    1 | 2)
      say "exit code $code, never to be run again. Give the slice back with: $here/delete.sh $env_file"
      exit "$code"
      ;;
    75) say "saved, runs again" ;;
  esac
  # A slice that is being taken away fails in every way; only one that stays is at fault itself
  if [ "$code" != 75 ]; then
    sleep "$POLL_SECONDS"
    [ "$(state)" != ACTIVE ] || fail "exit code $code" "$code"
  fi
done
