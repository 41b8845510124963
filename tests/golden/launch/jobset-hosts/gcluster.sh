#!/usr/bin/env bash
# Rendered by mujax launch: the jobs of jobsets.yaml for Cluster Toolkit. Its arguments go to each
# gcluster job submit: those that name the cluster, as gcluster job submit --help has them.
# shellcheck disable=SC2016
set -euo pipefail
gcluster job submit "$@" --name=quick --image=reg/mujax:1 --compute-type=v4-32 --topology=2x2x4 --mount=work:/work:rw --restarts=5 --restart-on-exit-codes=75 --grace-period=120s '--command=set -- mujax sweep --config=tests/data/six_points.py --workdir=/work/quick
child='"'"''"'"' stop=0
trap '"'"'stop=1; [ -z "$$child" ] || kill -TERM "$$child"'"'"' TERM
"$$@" &
child=$$!
[ "$$stop" = 0 ] || kill -TERM "$$child"
stop=1 code=129
while [ "$$stop" = 1 ] && [ "$$code" -gt 128 ]; do
  stop=0
  wait "$$child"
  code=$$?
done
[ "$$code" != 3 ] || exit 0
exit "$$code"
'
