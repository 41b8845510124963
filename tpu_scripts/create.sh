#!/usr/bin/env bash
# Asks for the slice; watch.sh waits for it.
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "$0")/lib.sh"

tpus queued-resources create "$NAME" --node-id="$NAME" "${CREATE[@]}"
