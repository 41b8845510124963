#!/usr/bin/env bash
# Puts the code, what was fetched of earlier results, and a Python environment on all workers, in ~/NAME.
# Where the job runs already, nothing changes.
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "$0")/lib.sh"

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/$NAME"
cp -- "$1" "$stage/$NAME/job.env"
cp -- "$(dirname "$0")/worker.sh" "$stage/$NAME/worker.sh"
# Which code it is, since .git stays here
git -C "$SOURCE" describe --always --dirty --abbrev=9 >"$stage/$NAME/commit" 2>/dev/null || true
# In the folder, since tar -C reads backslashes as escapes
(cd -- "$SOURCE" && tar -cz --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=__pycache__ .) \
  >"$stage/$NAME/source.tar.gz"
if [ -e "$RESULTS/manifest.json" ]; then
  (cd -- "$RESULTS" && tar -cz --exclude=./log --exclude=./logs .) >"$stage/$NAME/results.tar.gz"
fi
tpus tpu-vm scp --recurse "$stage/$NAME" "$NAME:" --worker=all
on_worker all "bash $NAME/worker.sh setup"
