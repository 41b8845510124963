# shellcheck shell=bash
# What the scripts here share. Each takes a NAME.env, as mujax launch --engine=tpu_vm has written it.
set -euo pipefail

if [ $# -ne 1 ] || [ ! -f "$1" ]; then
  echo "usage: $0 NAME.env, a file that mujax launch --engine=tpu_vm has written" >&2
  exit 2
fi
# shellcheck source=/dev/null
source "$(realpath -- "$1")"

tpus() { # gcloud compute tpus ..., in the right place
  gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+"--project=$PROJECT"} --quiet
}

on_worker() { # WORKER COMMAND; the command is a constant, what it needs comes in ~/NAME/job.env
  tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2" \
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4
}

state() { # of the queued resource; NONE if there is none, UNKNOWN if gcloud could not tell
  local found
  if found=$(tpus queued-resources list --filter="name~\"/$NAME\$\"" --format='value(state.state)'); then
    echo "${found:-NONE}"
  else
    echo UNKNOWN
  fi
}
