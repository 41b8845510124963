"""GKE: one JobSet per shard, through Kueue if a queue is named, or through Cluster Toolkit."""

import re
import shlex
from typing import Any

import yaml

from mujax.errors import UserError
from mujax.launch.job import NEVER_AGAIN, SAVED, Launch, as_child
from mujax.launch.slices import Slice

_SECONDS_TO_SAVE = 120  # between SIGTERM and SIGKILL; spot nodes get less from their host

# Only exit code 0 means finished to Kubernetes. The command is passed as arguments of this script,
# never inserted into it.
_WRAPPER = f"""\
{as_child("TERM")}[ "$code" != 3 ] || exit 0
exit "$code"
"""


def render(
    launch: Launch,
    tpu: Slice,
    image: str,
    mount: str,
    queue: str | None,
    spot: bool,
    parallel: int | None,
) -> dict[str, str]:
    """Returns the manifests, and a script that hands the same jobs to gcluster.

    Args:
      mount: CLAIM:/PATH, the volume that holds the workdirs; without it they would vanish with the
        pods.
      queue: a LocalQueue of Kueue.
      parallel: slices that kueue.yaml has room for; None: one per job.

    Raises:
      UserError: a name that Kubernetes would refuse, or a workdir that is not on a volume.
    """
    if not tpu.shape:
        raise UserError(
            f"--topology={tpu.accelerator_type} names no shape, which GKE asks for; e.g. v4:2x2x1"
        )
    claim, _, path = mount.partition(":")
    if not (_is_label(claim) and path.startswith("/") and ":" not in path):
        raise UserError(
            f"--mount={mount} is not CLAIM:/PATH, a PersistentVolumeClaim and where it is mounted"
        )
    if not f"{launch.workdir}/".startswith(f"{path.rstrip('/')}/"):
        raise UserError(
            f"--workdir={launch.workdir} is not under {path} of --mount, and would go with the pod"
        )
    if queue is not None and not _is_label(queue):
        raise UserError(f"--queue={queue} is no name of a LocalQueue")
    if parallel and not queue:
        raise UserError("--parallel needs --queue: it is Kueue that lets jobs wait")
    if not re.fullmatch(r"[\w./:@-]+", image, re.ASCII):
        raise UserError(f"--image={image} is no name of an image")
    jobsets = [
        _jobset(launch, job.name, job.argv, tpu, image, (claim, path), queue, spot)
        for job in launch.jobs
    ]
    files = {
        "jobsets.yaml": _dump(jobsets),
        "gcluster.sh": _gcluster(launch, tpu, image, mount, queue, spot),
    }
    if queue:
        files["kueue.yaml"] = _dump(_kueue(queue, tpu, parallel or len(launch.jobs)))
    return files


def _is_label(name: str) -> bool:
    return len(name) <= 63 and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) is not None


def _jobset(
    launch: Launch, name: str, argv, tpu: Slice, image: str, mount, queue: str | None, spot: bool
) -> dict:
    claim, path = mount
    selector = _node_labels(tpu)
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        )
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/part-of": launch.name}}
    if queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = queue
    if tpu.hosts > 1:  # a slice of several hosts is a node pool of its own: all hosts must be in it
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    container = {
        "name": "mujax",
        "image": image,
        "command": ["sh", "-c", _WRAPPER, "mujax"],
        "args": [_unexpanded(arg) for arg in argv],
        "resources": {"limits": {"google.com/tpu": tpu.chips // tpu.hosts}},
        "volumeMounts": [{"name": "workdirs", "mountPath": path}],
    }
    job = {
        "completionMode": "Indexed",
        "parallelism": tpu.hosts,
        "completions": tpu.hosts,
        # A failure that no rule names fails the job, and the JobSet starts it again.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": _exit_codes(*NEVER_AGAIN)},
                # a new pod, without counting a retry
                {"action": "Ignore", "onExitCodes": _exit_codes(SAVED)},
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {
            "spec": {
                "restartPolicy": "Never",  # required by podFailurePolicy
                "terminationGracePeriodSeconds": _SECONDS_TO_SAVE,
                "nodeSelector": selector,
                "tolerations": tolerations,
                "containers": [container],
                "volumes": [{"name": "workdirs", "persistentVolumeClaim": {"claimName": claim}}],
            }
        },
    }
    never = {
        "name": "neverAgain",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": launch.retries, "rules": [never]},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _node_labels(tpu: Slice) -> dict[str, str]:
    return {
        "cloud.google.com/gke-tpu-accelerator": tpu.cloud.gke,
        "cloud.google.com/gke-tpu-topology": str(tpu.shape),
    }


def _exit_codes(*codes: int) -> dict[str, Any]:
    return {"containerName": "mujax", "operator": "In", "values": list(codes)}


def _unexpanded(arg: str) -> str:
    """Escapes an argument: Kubernetes would replace $(NAME) in it, and $$ by $."""
    return arg.replace("$", "$$")


def _kueue(queue: str, tpu: Slice, slices: int) -> list[dict]:
    """Returns a queue with room for `slices` slices, for a cluster that has none yet."""
    flavor = f"{tpu.cloud.gke}-{tpu.shape}"
    quota = {"name": "google.com/tpu", "nominalQuota": slices * tpu.chips}
    groups = [
        {
            "coveredResources": ["google.com/tpu"],
            "flavors": [{"name": flavor, "resources": [quota]}],
        }
    ]
    api = "kueue.x-k8s.io/v1beta1"
    return [
        {
            "apiVersion": api,
            "kind": "ResourceFlavor",
            "metadata": {"name": flavor},
            "spec": {"nodeLabels": _node_labels(tpu)},
        },
        {
            "apiVersion": api,
            "kind": "ClusterQueue",
            "metadata": {"name": queue},
            "spec": {"namespaceSelector": {}, "resourceGroups": groups},
        },
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": queue},
            "spec": {"clusterQueue": queue},
        },
    ]


def _gcluster(
    launch: Launch, tpu: Slice, image: str, mount: str, queue: str | None, spot: bool
) -> str:
    """Returns the script for gcluster, which takes a command as one string for bash -c."""
    lines = [
        "#!/usr/bin/env bash",
        "# Rendered by mujax launch: the jobs of jobsets.yaml for Cluster Toolkit. Its arguments "
        "go to each",
        "# gcluster job submit: those that name the cluster, as gcluster job submit --help has "
        "them.",
        "# shellcheck disable=SC2016",
        "set -euo pipefail",
    ]
    for job in launch.jobs:
        command = _unexpanded(f"set -- {shlex.join(job.argv)}\n{_WRAPPER}")
        flags = {
            "name": job.name,
            "image": image,
            "compute-type": tpu.accelerator_type,
            "topology": tpu.shape,
            "queue": queue,
            "mount": f"{mount}:rw",
            "node-constraint": "cloud.google.com/gke-spot=true" if spot else None,
            "restarts": launch.retries,
            "restart-on-exit-codes": SAVED,
            "grace-period": f"{_SECONDS_TO_SAVE}s",
            "command": command,
        }
        given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        lines.append(f'gcluster job submit "$@" {shlex.join(given)}')
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes scripts as blocks of lines."""

    def represent_text(self, text: str):
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
        )


_Dumper.add_representer(str, _Dumper.represent_text)


def _dump(documents: list[dict]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100)
