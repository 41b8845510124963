"""Stands in for gcloud, kubectl, gcluster, sbatch, scontrol, uv and mujax: records its arguments,
and plays the part.

It is called by the tool's name. $STANDIN is a folder: calls.jsonl is what was called; `codes` holds
what mujax is to do, call by call (an exit code; `term`: wait for SIGTERM and exit with 75; `wait`:
until the file `go` is there;
`preempt`: the slice is taken away meanwhile; none left: exit with 0).
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["STANDIN"])
TOOL, ARGS = Path(sys.argv[0]).name, sys.argv[1:]


def pop(name: str, last: str = "") -> str:
    """The first line of a file, which it loses; the last one stays if `last` is 'stays'."""
    file = ROOT / name
    with open(ROOT / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two jobs may be called at once
        lines = file.read_text().split() if file.exists() else []
        if len(lines) > 1 or last != "stays":
            file.write_text("\n".join(lines[1:]))
    return lines[0] if lines else ""


def wait_for(is_so) -> None:
    """A test that has failed leaves nothing behind that waits forever."""
    end = time.time() + 60
    while not is_so() and time.time() < end:
        time.sleep(0.01)


def mujax() -> int:
    what = pop("codes") or "0"
    sys.stdout.write("50%")  # a bar of progress, which ends no line
    sys.stdout.flush()
    if "MUJAX_COMMIT" in os.environ:
        (ROOT / "commit").write_text(os.environ["MUJAX_COMMIT"])
    workdir = next(arg.partition("=")[2] for arg in ARGS if arg.startswith("--workdir="))
    if not os.path.isabs(workdir):  # on a slice; leaves something to be fetched
        Path(workdir).mkdir(parents=True, exist_ok=True)
        (Path(workdir) / "manifest.json").write_text("{}")
        with open(Path(workdir) / "results.jsonl", "a") as stream:
            stream.write(f"{what}\n")
    if what == "term":
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append("TERM "))
        (ROOT / "waiting").touch()
        wait_for(lambda: stopped)
        time.sleep(0.2)  # saves; whoever waits must not go on before
        (ROOT / "signals").write_text("".join(stopped))
        return 75
    if what == "wait":
        (ROOT / "waiting").touch()
        wait_for((ROOT / "go").exists)
        return 0
    if what == "preempt":
        (ROOT / "states").write_text("SUSPENDING SUSPENDED")
        return 137
    return int(what)


def gcloud() -> int:
    """One queued resource, in a zone where slices are there on the third look; its worker's home is
    a folder."""
    assert ARGS[:2] == ["compute", "tpus"], ARGS
    flags = dict(arg[2:].partition("=")[::2] for arg in ARGS if arg.startswith("--"))
    words = [arg for arg in ARGS[2:] if not arg.startswith("--")]
    home, states = ROOT / "home", ROOT / "states"
    if fail := pop("gcloud_codes").replace("ok", ""):
        return int(fail)
    match words[:2]:
        case ["queued-resources", "list"]:
            print(pop("states", "stays"))
        case ["queued-resources", "create"]:
            assert not states.exists() or not states.read_text(), "exists"
            home.mkdir()
            states.write_text(
                pop("next_states").replace(",", " ") or "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
            )
        case ["queued-resources", "delete"]:
            states.unlink()
            shutil.rmtree(home)
        case ["tpu-vm", "ssh"]:
            shell = ["bash", "-c", flags["command"]]
            done = subprocess.run(
                shell, cwd=home, env={**os.environ, "HOME": str(home)}, stdout=subprocess.PIPE
            )
            if states.read_text().split()[0] != "ACTIVE":
                return 255
            sys.stdout.buffer.write(done.stdout)
            return done.returncode
        case ["tpu-vm", "scp"]:
            source, target = words[2:]
            name, _, path = source.partition(":")
            if path:
                shutil.copy(home / path, target)
            else:
                shutil.copytree(name, home / Path(name).name, dirs_exist_ok=True)
        case _:
            raise AssertionError(ARGS)
    return 0


def uv() -> int:
    if ARGS[0] == "venv":
        bin_ = Path(ARGS[-1]) / "bin"
        bin_.mkdir(parents=True)
        for name in ("python", "mujax"):
            (bin_ / name).symlink_to(Path(__file__).resolve())
    else:
        assert Path("source/mujax").is_dir() and not Path("source/.venv").exists()
    return 0


def sbatch() -> int:
    """Runs each task until it does not queue itself again."""
    script = ARGS[-1]
    first, last = re.search(
        r"^#SBATCH --array=(\d+)-(\d+)", Path(script).read_text(), re.M
    ).groups()
    name = re.search(r"^#SBATCH --job-name=(.+)$", Path(script).read_text(), re.M)[1]
    worst = 0
    for task in range(int(first), int(last) + 1):
        slurm = {
            "ARRAY_TASK_ID": f"{task}",
            "ARRAY_JOB_ID": "7",
            "JOB_NAME": name,
            "SUBMIT_DIR": os.getcwd(),
        }
        env = {**os.environ, **{f"SLURM_{key}": value for key, value in slurm.items()}}
        while True:
            code = subprocess.run(["bash", script], env=env).returncode
            requeued = ROOT / f"requeue-7_{task}"
            if not requeued.exists():
                break
            requeued.unlink()
        worst = max(worst, code)
    return worst


def scontrol() -> int:
    assert ARGS[0] == "requeue"
    (ROOT / f"requeue-{ARGS[1]}").touch()
    return 0


def expanded(text: str) -> str:
    """As the kubelet has it: $$ is $, and $(NAME) the variable, if there is one."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)", lambda m: "$" if m[0] == "$$" else os.environ.get(m[1], m[0]), text
    )


def kubectl() -> int:
    """Runs each JobSet by the rules of Job.spec.podFailurePolicy and JobSet.spec.failurePolicy."""
    sys.path += os.environ["STANDIN_PATH"].split(":")
    import yaml

    worst = 0
    for document in yaml.safe_load_all(Path(ARGS[ARGS.index("-f") + 1]).read_text()):
        if document["kind"] == "JobSet":
            worst = max(worst, jobset(document["spec"]))
    return worst


def jobset(spec) -> int:
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    container = job["template"]["spec"]["containers"][0]
    restarts = 0
    while True:
        argv = [expanded(word) for word in (*container["command"], *container["args"])]
        code = subprocess.run(argv).returncode
        if code == 0:
            return 0
        rules = [rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
        action = next(
            (rule["action"] for rule in rules if code in rule["onExitCodes"]["values"]), "Count"
        )
        if action == "Ignore":
            continue
        reason = "PodFailurePolicy" if action == "FailJob" else "BackoffLimitExceeded"
        policy = spec["failurePolicy"]
        if any(
            rule["action"] == "FailJobSet" and reason in rule["onJobFailureReasons"]
            for rule in policy["rules"]
        ):
            return code
        if restarts == policy["maxRestarts"]:
            return code
        restarts += 1


def gcluster() -> int:
    command = next(arg.partition("=")[2] for arg in ARGS if arg.startswith("--command="))
    return subprocess.run(["bash", "-c", expanded(command)]).returncode


def main() -> int:
    with open(ROOT / "calls.jsonl", "a") as stream:
        stream.write(json.dumps([TOOL, *ARGS]) + "\n")
    if TOOL == "python":  # python -m mujax ...
        ARGS[:] = ARGS[2:]
        return mujax()
    return globals()[TOOL]()


sys.exit(main())
