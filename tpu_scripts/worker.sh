#!/usr/bin/env bash
# Runs on the workers, in ~/NAME, where setup.sh puts it. `run` may be called again at any time.
set -euo pipefail

setup() {
  exec 9>>lock
  flock -n 9 || return 0 # the job runs
  rm -rf source
  mkdir source
  tar -xzf source.tar.gz -C source
  if [ -e results.tar.gz ] && [ ! -e work ]; then
    mkdir -p work.new
    tar -xzf results.tar.gz -C work.new
    mv work.new work
  fi
  PATH="$HOME/.local/bin:$PATH" # mujax needs a newer Python than Ubuntu 22.04 has; uv brings one
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [ -x venv/bin/python ] || uv venv --quiet --python '>=3.11' venv
  uv pip install --quiet --python venv/bin/python -e './source[tpu]'
}

run() { # whoever holds the lock is the job
  exec 9>>lock
  if flock -n 9; then
    rm -f exit_code
    setsid nohup bash worker.sh job >>log 2>&1 </dev/null & # it has the lock too, and keeps it
  fi
  exec 9>&-
  touch log
  tail -n 20 -f log &
  local tail=$!
  flock lock true # waits for the job
  kill "$tail" 2>/dev/null || true
  printf '\nmujax-launch: exit code %s\n' "$(cat exit_code 2>/dev/null || echo 137)" # a killed job leaves half a line
}

job() {
  local code=0
  MUJAX_COMMIT=$(cat commit 2>/dev/null) || true
  export MUJAX_COMMIT
  (cd source && PATH="$PWD/../venv/bin:$PATH" "${COMMAND[@]}") || code=$?
  echo "$code" >exit_code.new
  mv exit_code.new exit_code
}

pack() { # the rows are taken first, and unpacked last, so that no row is ever without its curve
  local code=0
  mkdir -p work
  touch log work/results.jsonl
  cp work/results.jsonl results.jsonl
  tar -czf fetch.tar.gz --exclude=./results.jsonl --exclude=./lock -C "$PWD/work" . -C "$PWD" log results.jsonl ||
    code=$?
  [ "$code" -le 1 ] # 1: a file changed meanwhile; those that count are replaced whole
}

cd "$(dirname "$0")"
# shellcheck source=/dev/null
source ./job.env
case $1 in
  setup) setup ;;
  run) run ;;
  job) job ;;
  pack) pack ;;
esac
exit
