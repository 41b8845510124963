#!/usr/bin/env bash
# Brings what the job has written so far from the first worker to its workdir here; may be called at any time.
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "$0")/lib.sh"

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
on_worker 0 "bash $NAME/worker.sh pack"
tpus tpu-vm scp "$NAME:$NAME/fetch.tar.gz" "$stage/" --worker=0
mkdir -p -- "$RESULTS"
(cd -- "$RESULTS" && tar -xz) <"$stage/fetch.tar.gz" # tar -C would read backslashes as escapes
