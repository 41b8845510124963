"""Plans every config of both papers at full scale for its pod, with as many runs at once as fit.

    python experiments/benchmarks/plan_all.py [NAME ...]

Runs at once have devices of their own. Needs libtpu. Runs that differ only in numbers, of any
config, are compiled once. Without names it writes plans/lingle2024.{json,txt} and
plans/kalra2026.{json,txt}; it exits with 1 if a point does not fit.
"""

import json
import sys
from pathlib import Path

from configs.kalra2026 import studies
from configs.lingle2024 import ablations
from mujax.plan.estimate import estimate
from mujax.plan.plan import ASSUMPTIONS, Group, format_plan, group_json
from mujax.plan.topology import load_topology
from mujax.sweep.points import group_points, make_points

PLANS = Path(__file__).parent / "plans"
# paper -> name -> (its config, the config's topology)
CONFIGS = {
    "lingle2024": {
        name: (ablations.get_config, "v4:4x8x8" if name.startswith("combined") else "v3:8x8")
        for name in ablations.ABLATIONS
    },
    "kalra2026": {name: (studies.get_config, "v4:4x4x4") for name in studies.STUDIES},
}


def plan_groups(tree: dict, topology_name: str) -> list[Group]:
    """Plans the groups of a sweep's points, the narrowest first."""
    topology = load_topology(topology_name)
    groups = []
    for points in group_points(make_points(tree)):
        run = points[0].run
        slots = len(topology.devices) // run.cfg.mesh.num_devices
        groups.append(Group(run, len(points), estimate(run, topology, min(slots, len(points)))))
    return groups


def main(names: list[str]) -> int:
    if unknown := set(names) - {name for configs in CONFIGS.values() for name in configs}:
        sys.exit(f"no config {', '.join(unknown)}")
    fits = True
    for paper, configs in CONFIGS.items():
        documents, tables = {}, []
        for name, (get_config, topology) in configs.items():
            if names and name not in names:
                continue
            groups = plan_groups(get_config(name).to_dict(), topology)
            fits &= all(group.estimate.fits for group in groups)
            tables.append(f"{name}\n{format_plan(groups)}\n")
            print(tables[-1], flush=True)
            documents[name] = {
                "topology": topology,
                "groups": [group_json(group) for group in groups],
            }
            for group in documents[name]["groups"]:
                del group["model"], group["top"]  # too long to keep
        if not names:
            text = json.dumps({"assumptions": ASSUMPTIONS, "plans": documents}, indent=1)
            (PLANS / f"{paper}.json").write_text(text + "\n")
            (PLANS / f"{paper}.txt").write_text("\n".join(tables))
    return int(not fits)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
