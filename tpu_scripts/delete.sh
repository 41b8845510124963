#!/usr/bin/env bash
# Gives the slice back, and all that was not fetched from it is lost.
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "$0")/lib.sh"

tpus queued-resources delete "$NAME" --force
