"""Launching: what is rendered, to the letter; and run against stand-ins of the engines'
commands."""

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import ROOT

from mujax import main
from mujax.errors import UserError
from mujax.launch import local
from mujax.launch.job import Job, Launch, as_child
from mujax.launch.slices import parse_topology

SCRIPTS = ROOT / "tpu_scripts"
GOLDEN = ROOT / "tests/golden/launch"
SCHEMA = json.loads((ROOT / "tests/data/jobset_schema.json").read_text())
TOOLS = ("gcloud", "gcluster", "kubectl", "mujax", "python", "sbatch", "scontrol", "uv")

SLURM = ["--engine=slurm"]
TPU_VM = ["--engine=tpu_vm", "--topology=v4:2x2x1", "--zone=us-central2-b"]
JOBSET = ["--engine=jobset", "--topology=v5e:2x4", "--image=reg/mujax:1", "--mount=work:/work"]
CASES = {
    "slurm": [
        *SLURM,
        "--shards=3",
        "--parallel=2",
        "--partition=gpu",
        "--time=04:00:00",
        "--retries=2",
    ],
    "slurm-one": SLURM,
    "tpu_vm": [*TPU_VM, "--shards=2", "--spot"],
    "tpu_vm-type": [
        *TPU_VM,
        "--topology=v5litepod-8",
        "--project=my-project",
        "--runtime_version=v2-alpha-new",
    ],
    "jobset": [*JOBSET, "--shards=2", "--spot", "--queue=tpu", "--parallel=1"],
    "jobset-hosts": [*JOBSET, "--topology=v4:2x2x4"],
}


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """Runs `mujax launch`, rendering to tmp_path/out; returns (exit code, what it prints, what it
    complains)."""
    monkeypatch.chdir(ROOT)

    def run(*flags, out=tmp_path / "out", config="tests/data/six_points.py"):
        where = [f"--out={out}"] if out else []
        code = main.run(["launch", f"--config={config}", "--workdir=/work/quick", *where, *flags])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def standins(tmp_path, monkeypatch):
    """The engines' commands on the PATH, and the folder through which they are told what to do."""
    folder, bin_ = tmp_path / "standin", tmp_path / "bin"
    folder.mkdir()
    bin_.mkdir()
    program = bin_ / "standin"
    program.write_text(
        f"#!{sys.executable} -IS\n" + (ROOT / "tests/standins/standin.py").read_text()
    )
    program.chmod(0o755)
    for tool in TOOLS:
        (bin_ / tool).symlink_to(program)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN", str(folder))
    monkeypatch.setenv("STANDIN_PATH", ":".join(path for path in sys.path if path))
    return folder


def calls(standins: Path, *tools: str) -> list[list[str]]:
    file = standins / "calls.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if line[0] in tools]


def sweeps(standins: Path) -> list[list[str]]:
    """Each time that the job's command itself was called, its arguments."""
    return [
        ["mujax", *call[3:]] if call[0] == "python" else call
        for call in calls(standins, "mujax", "python")
    ]


def run_out(standins: Path, out: Path, engine: str) -> int:
    """Does what the launch has said to do; returns the exit code of the worst job."""
    match engine:
        case "slurm":
            return subprocess.run(["sbatch", next(out.glob("*.sbatch")).name], cwd=out).returncode
        case "jobset":
            return subprocess.run(["kubectl", "apply", "-f", out / "jobsets.yaml"]).returncode
        case "gcluster":
            return subprocess.run(["bash", out / "gcluster.sh", "--cluster=c"]).returncode
        case _:
            return max(recreate(env).returncode for env in sorted(out.glob("*.env")))


def recreate(env: Path, script: str = "recreate.sh") -> subprocess.CompletedProcess:
    hasten(env)
    return subprocess.run([SCRIPTS / script, env], capture_output=True, text=True, timeout=60)


def hasten(env: Path) -> None:
    """Looks often, and takes a small folder for the repository."""
    small = env.parent / "source"
    if not small.exists():
        (small / "mujax").mkdir(parents=True)
        for file in env.parent.glob("*.env"):
            text = file.read_text().replace(
                f"SOURCE={ROOT}\n", f"SOURCE={shlex.quote(str(small))}\n"
            )
            file.write_text(f"{text}POLL_SECONDS=0.02\n")


def wait_for(is_so) -> None:
    for _ in range(3000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("nothing came")


@pytest.mark.parametrize("case", CASES)
def test_golden_files(case, launch, tmp_path, request):
    code, _, err = launch(*CASES[case])
    assert (code, err) == (0, "")
    written = {
        f.name: f.read_text().replace(str(ROOT), "@ROOT@") for f in (tmp_path / "out").iterdir()
    }
    written["launch.json"] = written["launch.json"].replace(str(tmp_path), "@TMP@")
    if request.config.getoption("--regenerate-golden"):
        shutil.rmtree(GOLDEN / case, ignore_errors=True)
        (GOLDEN / case).mkdir(parents=True)
        for name, text in written.items():
            (GOLDEN / case / name).write_text(text)
    assert written == {file.name: file.read_text() for file in (GOLDEN / case).iterdir()}


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    assert shellcheck, "pip install 'mujax[test]' brings shellcheck"
    files = [
        f
        for folder in (SCRIPTS, GOLDEN)
        for f in sorted(folder.rglob("*"))
        if f.suffix in (".sh", ".sbatch", ".env")
    ]
    assert len(files) >= 13
    done = subprocess.run(
        [shellcheck, "-x", "-P", ROOT, *files], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("jobset")])
def test_manifests_are_of_the_published_schema(case):
    documents = list(yaml.safe_load_all((GOLDEN / case / "jobsets.yaml").read_text()))
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for document in documents:
        validator.validate(document)
    job = documents[0]["spec"]["replicatedJobs"][0]["template"]["spec"]
    # the schema is not so lenient that it means nothing
    job["podFailurePolicy"]["rules"][0]["onExitCode"] = {}
    job["parallelism"] = "1"
    assert len(list(validator.iter_errors(documents[0]))) == 2


# What is in a value must reach the job, and no shell
HOSTILE = {
    "words": "a  b\t'c' \"d\"",
    "commands": "; touch pwned; $(touch pwned) `touch pwned` & touch pwned | touch pwned > pwned",
    "lines": "a\ntouch pwned\n#SBATCH --wrap=x\n'\n\"\n",
    "escapes": "\\' \\\" \\n $$ $HOME $(HOME) ${PATH} !! ~ * ? [a] {a,b} %x",
    "yaml": "- a: {b: [c]} # d\n--- !!python/object:os.system\n\u00e9\u2028\U0001f600",
}
ENGINES = {
    "slurm": SLURM,
    "tpu_vm": TPU_VM,
    "jobset": JOBSET,
    "gcluster": JOBSET,
    "local": ["--engine=local"],
}


@pytest.mark.parametrize(
    ("engine", "kind"),
    [*((e, k) for e in ENGINES for k in HOSTILE if e != "tpu_vm"), ("tpu_vm", "all of them")],
)
def test_hostile_values_reach_the_job_and_no_shell(
    engine, kind, launch, standins, tmp_path, monkeypatch
):
    """Through a config field, the workdir and the current folder, run to the innermost command."""
    value = HOSTILE.get(kind, "".join(HOSTILE.values())).replace("/", "_")  # it names folders, too
    here = tmp_path / f"here {value}"
    (here / "mujax").mkdir(parents=True)
    (here / "setup.py").touch()
    shutil.copy(ROOT / "tests/data/six_points.py", here / "config.py")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    workdir = (tmp_path if engine in ("local", "tpu_vm") else Path("/work")) / f"w {value}".replace(
        ",", ""
    )
    field = f"--config.data.path={value}"
    flags = [
        *ENGINES[engine],
        f"--workdir={workdir}",
        "--name=job",
        "--config.data.name=text",
        field,
        "--shards=2",
    ]
    out = None if engine == "local" else tmp_path / f"out {value}"
    code, _, err = launch(*flags, out=out, config="config.py")
    assert (code, err) == (0, "")
    if out:
        assert run_out(standins, out, engine) == 0
    own = ["../work"] * 2 if engine == "tpu_vm" else [f"{workdir}/shard-{i}" for i in range(2)]
    same = ["mujax", "sweep", "--config=config.py", "--config.data.name=text", field]
    assert sweeps(standins) == [[*same, f"--workdir={own[i]}", f"--shard={i}/2"] for i in range(2)]
    assert not [file for file in tmp_path.rglob("*") if file.name == "pwned"]
    if engine == "tpu_vm":
        assert (workdir / "shard-1/results.jsonl").exists()
    if engine == "jobset":
        for document in yaml.safe_load_all((out / "jobsets.yaml").read_text()):
            jsonschema.validate(document, SCHEMA)


# What mujax does, call by call -> how often it is called, and the exit code that is left; two
# retries
CODES = {
    "0": (1, 0),
    "3": (1, 0),
    "1": (1, 1),
    "2": (1, 2),
    "75 75 75 75 0": (5, 0),
    "137 1 0": (2, 1),
    "137 137 3": (3, 0),
    "137 75 139 75 134 0": (5, 134),
}
SLOW_CODES = ("3", "1", "2", "137 75 139 75 134 0")  # where a call takes a second


@pytest.mark.parametrize(
    ("engine", "codes"),
    [
        (e, c)
        for e in ("slurm", "tpu_vm", "jobset", "local")
        for c in CODES
        if e != "tpu_vm" or c in SLOW_CODES
    ],
)
def test_exit_codes(engine, codes, launch, standins, tmp_path, monkeypatch):
    (standins / "codes").write_text(codes)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    workdir = [f"--workdir={tmp_path / 'w'}"] if engine in ("local", "tpu_vm") else []
    out = None if engine == "local" else tmp_path / "out"
    code, _, _ = launch(*ENGINES[engine], *workdir, "--retries=2", out=out)
    if out:
        assert code == 0
        code = run_out(standins, out, engine)
    assert (len(sweeps(standins)), code) == CODES[codes]
    if engine == "slurm":
        requeued = [call[1:] for call in calls(standins, "scontrol")]
        assert requeued == [["requeue", "7_0"]] * (CODES[codes][0] - 1)
        assert not list(out.glob("*.retries"))[code in (1, 2) and len(sweeps(standins)) > 1 :]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_sigterm_is_handed_on_and_waited_for(shell, standins):
    """As in a container, where the shell is the process that gets the signal."""
    (standins / "codes").write_text("term")
    script = f'{as_child("TERM")}exit "$code"'
    process = subprocess.Popen([shell, "-c", script, "mujax", "mujax", "sweep", "--workdir=/work"])
    wait_for((standins / "waiting").exists)
    process.terminate()
    assert process.wait(timeout=30) == 75


@pytest.mark.parametrize("how", ["time limit", "cancelled"])
def test_slurm_queues_a_job_again_that_was_stopped_but_not_one_that_was_cancelled(
    how, launch, standins, tmp_path
):
    """A second SIGTERM would have mujax stop without saving."""
    (standins / "codes").write_text("term")
    assert launch(*SLURM)[0] == 0
    slurm = {
        "ARRAY_TASK_ID": "0",
        "ARRAY_JOB_ID": "7",
        "JOB_NAME": "quick",
        "SUBMIT_DIR": str(tmp_path),
    }
    env = {**os.environ, **{f"SLURM_{key}": value for key, value in slurm.items()}}
    script = subprocess.Popen(
        ["bash", tmp_path / "out/quick.sbatch"], env=env, start_new_session=True
    )
    wait_for((standins / "waiting").exists)
    if how == "cancelled":
        os.killpg(script.pid, signal.SIGTERM)
    else:
        script.send_signal(signal.SIGUSR1)
    assert script.wait(timeout=30) == 75
    assert len(calls(standins, "scontrol")) == (how == "time limit")
    assert (standins / "signals").read_text() == "TERM "


def test_interrupted_local_jobs_save_and_are_waited_for(standins, tmp_path, monkeypatch):
    """Ctrl-C or SIGTERM: one SIGTERM for what runs; what waits for its turn does not start."""
    (standins / "codes").write_text("term\nterm")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    jobs = tuple(Job(f"job-{i}", ("mujax", "sweep", "--workdir=/work"), "/work") for i in range(3))
    launched = Launch("job", str(tmp_path / "w"), jobs, 5, str(tmp_path))

    def interrupt():
        wait_for(lambda: len(sweeps(standins)) == 2 and not (standins / "codes").read_text())
        time.sleep(1)  # until both have their handlers
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        local.run(launched, parallel=2)
    assert len(sweeps(standins)) == 2


def rendered(launch, tmp_path, *flags) -> Path:
    """The NAME.env of one slice, whose results come to tmp_path/w."""
    code, _, err = launch(
        *TPU_VM, f"--workdir={tmp_path / 'w'}", "--name=job", "--retries=2", *flags
    )
    assert (code, err) == (0, "")
    env = tmp_path / "out/job.env"
    hasten(env)
    return env


def verbs(standins) -> list[str]:
    """What gcloud was asked for, without the questions."""
    return [" ".join(call[4:5]) for call in calls(standins, "gcloud") if call[4] != "list"]


def test_a_slice_that_is_taken_away_is_made_again_and_its_results_put_back(
    launch, standins, tmp_path
):
    # neither this nor exit code 75 is a failure
    env = rendered(launch, tmp_path, "--spot", "--retries=0")
    env.write_text(env.read_text() + "FETCH_SECONDS=0\n")
    (standins / "codes").write_text("75\npreempt\n3")
    done = recreate(env)
    assert done.returncode == 0, done.stderr
    creates = [call for call in calls(standins, "gcloud") if call[4] == "create"]
    common = ["--zone=us-central2-b", "--quiet"]
    kind = ["--type=v4", "--topology=2x2x1", "--runtime-version=tpu-ubuntu2204-base", "--spot"]
    assert (
        creates
        == [
            [
                "gcloud",
                "compute",
                "tpus",
                "queued-resources",
                "create",
                "job",
                "--node-id=job",
                *kind,
                *common,
            ]
        ]
        * 2
    )
    assert len(sweeps(standins)) == 3
    # The second slice goes on from what was fetched of the first
    rows = (tmp_path / "w/results.jsonl").read_text().split()
    assert rows == ["75", "3"]
    assert (
        calls(standins, "gcloud")[-1][4:6] == ["delete", "job"] and not (standins / "home").exists()
    )
    assert "SUSPENDED; the slice is created again" in done.stderr


def test_a_second_loop_for_one_slice_is_refused(launch, standins, tmp_path):
    """Each would delete what the other has created."""
    env = rendered(launch, tmp_path)
    with open(f"{env}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = recreate(env)
    assert (done.returncode, verbs(standins)) == (2, [])
    assert "recreate.sh runs already" in done.stderr


def test_rows_say_which_code_a_slice_has_run(launch, standins, tmp_path):
    """Its source comes without .git."""
    env = rendered(launch, tmp_path)
    git = ["git", "-C", tmp_path / "out/source", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "--message=first"], check=True)
    commit = subprocess.check_output([*git, "describe", "--always", "--abbrev=9"], text=True)
    assert recreate(env).returncode == 0
    assert (standins / "commit").read_text() == commit.strip()


def test_a_request_that_fails_is_made_again_but_not_forever(launch, standins, tmp_path):
    env = rendered(launch, tmp_path)
    (standins / "next_states").write_text("WAITING_FOR_RESOURCES,FAILED\n" * 9)
    done = recreate(env)
    assert (done.returncode, verbs(standins)) == (
        1,
        ["create", "delete", "create", "delete", "create"],
    )
    assert "the request has failed; given up after 2 retries" in done.stderr
    assert not sweeps(standins)


def test_exit_codes_of_gcloud_are_not_the_jobs(launch, standins, tmp_path):
    """Neither when it cannot tell the state, nor when it cannot reach the worker; a request refused
    is final."""
    env = rendered(launch, tmp_path)
    # In turn: list, list, create, list, list, list, list: active; scp, ssh: set up; ssh: run; scp
    (standins / "gcloud_codes").write_text("1 ok ok 2 ok ok ok ok ok 1")
    done = recreate(env)
    assert done.returncode == 0, done.stderr
    assert "lost the connection" in done.stderr
    assert len(sweeps(standins)) == 1
    (standins / "gcloud_codes").write_text("ok 1")
    done = recreate(env)
    assert (done.returncode, verbs(standins)[-1]) == (1, "create")


def test_a_job_outlives_the_connection_and_is_found_again(launch, standins, tmp_path):
    env = rendered(launch, tmp_path)
    (standins / "codes").write_text("wait")
    for script in ("create.sh", "watch.sh", "setup.sh"):
        done = recreate(env, script)
        assert done.returncode == 0, done.stderr
    first = subprocess.Popen([SCRIPTS / "run.sh", env], start_new_session=True)
    wait_for((standins / "waiting").exists)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    in_use = standins / "home/job/source/in_use"
    in_use.touch()
    assert recreate(env, "setup.sh").returncode == 0
    assert in_use.exists()  # nothing has changed under a job that runs
    second = subprocess.Popen([SCRIPTS / "run.sh", env], stdout=subprocess.PIPE, text=True)
    assert recreate(env, "fetch.sh").returncode == 0
    assert (tmp_path / "w/results.jsonl").read_text() == "wait\n"
    (standins / "go").touch()
    assert second.communicate(timeout=30)[0].endswith("mujax-launch: exit code 0\n")
    assert (second.returncode, len(sweeps(standins))) == (0, 1)


def test_of_several_workers_the_code_that_counts_most():
    text = (SCRIPTS / "run.sh").read_text()
    choose = text[text.index("worst=0") :]
    for codes, expected in {
        "0 0": 0,
        "0 3": 3,
        "3 75 0": 75,
        "137 3": 137,
        "75 2 137": 2,
        "0 1": 1,
    }.items():
        script = f"codes='{codes}'\n{choose}"
        assert subprocess.run(["bash", "-c", script]).returncode == expected, codes


BAD = {
    "no such engine": (["--engine=slrum"], "did you mean slurm?"),
    "no out": (["--engine=slurm"], "--engine=slurm needs --out"),
    "no image": ([f for f in JOBSET if "image" not in f], "--engine=jobset needs --image"),
    "no mount": ([f for f in JOBSET if "mount" not in f], "--engine=jobset needs --mount"),
    "no zone": (TPU_VM[:2], "--engine=tpu_vm needs --zone"),
    "flag of another engine": ([*SLURM, "--spot"], "--spot is not a flag of --engine=slurm"),
    "no shard": ([*SLURM, "--shards=0"], "--shards=0 must be at least 1"),
    "half a shard": ([*SLURM, "--shards=1.5"], "not a whole number"),
    "more shards than points": ([*SLURM, "--shards=7"], "--shards=7: the sweep has 6 points"),
    "more shards than curves": (
        [*SLURM, "--shards=3", "--config.refine.log2_step=0.5"],
        "stay together",
    ),
    "upper case": ([*SLURM, "--name=Quick"], "--name=Quick makes no DNS label"),
    "digit first": ([*SLURM, "--name=1quick"], "makes no DNS label"),
    "newline": ([*SLURM, "--name=quick\n"], "makes no DNS label"),
    "long with its number": (
        [*SLURM, f"--name={'q' * 27}", "--shards=2"],
        "has 29 characters, at most 28",
    ),
    "nameless workdir": ([*SLURM, "--workdir=/work/___"], "the workdir's name '___'"),
    "bucket": ([*SLURM, "--workdir=gs://b/quick"], "is not a local folder"),
    "comma": ([*SLURM, "--workdir=/work/a,b"], "comma"),
    "config": (
        [*SLURM, "--config.model.width=3"],
        "--config.model.width: the config has no such field",
    ),
    "impossible config": ([*SLURM, "--config.model.d_head=48"], "d_head"),
    "flagfile": ([*SLURM, "--flagfile=/dev/null"], "takes no --flagfile"),
    "partition": ([*SLURM, "--partition=a\n#SBATCH --wrap=x"], "is no name of partitions"),
    "time": ([*SLURM, "--time=four hours"], "is no time of Slurm's"),
    "zone": ([*TPU_VM, "--zone=a; touch pwned"], "--zone=a; touch pwned is no zone"),
    "version": ([*TPU_VM, "--runtime_version=$(touch pwned)"], "is no runtime version"),
    "config that stays behind": ([*TPU_VM, "--config=/etc/quick.py"], "no such file"),
    "generation": ([*TPU_VM, "--topology=v4e:2x2"], "no TPU generation 'v4e'"),
    "shape": ([*TPU_VM, "--topology=v4:2x2"], "3 numbers, e.g. v4:2x2x1"),
    "cores": ([*TPU_VM, "--topology=v4-7"], "2 cores a chip"),
    "hosts": ([*TPU_VM, "--topology=v4:3x3x3"], "not a whole number of hosts"),
    "mesh": (
        [*TPU_VM, "--config.mesh.fsdp=8"],
        "mesh.data * mesh.fsdp * mesh.tensor = 8 is more than the 4 devices",
    ),
    "slices": (
        [*JOBSET, "--config.mesh.slices=2", "--config.mesh.data=2"],
        "mesh.slices = 2: each job has one slice",
    ),
    "no shape": ([*JOBSET, "--topology=v4-8"], "names no shape"),
    "workdir elsewhere": ([*JOBSET, "--workdir=/workdirs/quick"], "is not under /work"),
    "mount": ([*JOBSET, "--mount=/work"], "--mount=/work is not CLAIM:/PATH"),
    "queue": ([*JOBSET, "--queue=a b"], "is no name of a LocalQueue"),
    "parallel": ([*JOBSET, "--parallel=2"], "--parallel needs --queue"),
    "image": ([*JOBSET, "--image=reg/a b"], "is no name of an image"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, launch, tmp_path):
    flags, message = BAD[case]
    code, printed, err = launch(*flags, out=None if "no out" in case else tmp_path / "out")
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_config_outside_the_repository_does_not_go_to_the_slice(launch, tmp_path, monkeypatch):
    shutil.copy(ROOT / "tests/data/six_points.py", tmp_path / "quick.py")
    for config in (tmp_path / "quick.py", os.path.relpath(tmp_path / "quick.py", ROOT)):
        assert "not a path below this folder" in launch(*TPU_VM, config=config)[2]
    monkeypatch.chdir(tmp_path)
    assert "no setup.py here" in launch(*TPU_VM, config="quick.py")[2]


def test_out_is_a_new_folder_or_this_launchs_own(launch, tmp_path):
    assert launch(*CASES["slurm"])[0] == 0
    (tmp_path / "out/quick-0.log").write_text("what the engine has left")
    assert launch(*CASES["slurm"])[0] == 0
    code, _, err = launch(*CASES["slurm"], "--config.optim.b2=0.9")
    assert (code, "holds another launch" in err) == (2, True)
    assert "optim.b2" not in (tmp_path / "out/quick.sbatch").read_text()
    mark = tmp_path / "out/launch.json"
    for content in (b"", b"\xff\x00", b"[]", b"null", b'{"launch": '):
        mark.write_bytes(content)
        code, _, err = launch(*CASES["slurm"])
        assert (code, "launch.json" in err, err.count("\n")) == (2, True, 1), (
            content[:9],
            err[:300],
        )
        assert mark.read_bytes() == content
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    for folder, message in (
        (tmp_path / "full", "holds other files"),
        (tmp_path / "full/mine", "is a file"),
    ):
        code, _, err = launch(*SLURM, out=folder)
        assert (code, message in err) == (2, True)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]


def test_topologies():
    """Chips, hosts and names as in the tables of cloud.google.com/tpu/docs (v4, v5p, v5e, v6e)."""
    table = {
        "v4:2x2x1": (4, 1, "v4-8"),
        "v4:2x2x4": (16, 4, "v4-32"),
        "v4-32": (16, 4, "v4-32"),
        "v5p:2x2x1": (4, 1, "v5p-8"),
        "v5e:1x1": (1, 1, "v5litepod-1"),
        "v5e:2x4": (8, 1, "v5litepod-8"),
        "v5litepod-16": (16, 4, "v5litepod-16"),
        "v6e:16x16": (256, 64, "v6e-256"),
    }
    for text, expected in table.items():
        tpu = parse_topology(text)
        assert (tpu.chips, tpu.hosts, tpu.accelerator_type) == expected, text
    assert parse_topology("v4:2x2x1").gcloud_flags == ["--type=v4", "--topology=2x2x1"]
    assert parse_topology("v5e:2x4").gcloud_flags == ["--accelerator-type=v5litepod-8"]
    with pytest.raises(UserError):
        parse_topology("")


def test_what_is_said_is_what_there_is_to_do(launch, tmp_path):
    _, slurm, _ = launch(*CASES["slurm"])
    merge = "mujax merge --workdir=/work/quick '--sources=/work/quick/shard-*'"
    assert f"cd {tmp_path}/out && sbatch quick.sbatch\n" in slurm and f"\n{merge}\n" in slurm
    _, one, _ = launch(*TPU_VM, out=tmp_path / "one")
    assert f"\ntpu_scripts/recreate.sh {tmp_path}/one/quick.env\n" in one
    assert "mujax merge" not in one and "hosts" not in one
    _, hosts, _ = launch(*TPU_VM, "--topology=v4:2x2x4", out=tmp_path / "hosts")
    assert "this slice has 4 hosts" in hosts


def test_commands_of_the_guide_render(launch, tmp_path):
    guide = ROOT / "docs/tpu.md"
    text = guide.read_text()
    commands = [
        shlex.split(c) for c in re.findall(r"^mujax launch (.*)$", text.replace("\\\n", ""), re.M)
    ]
    assert len(commands) == 3
    for i, flags in enumerate(commands):
        code, printed, err = launch(*flags, f"--out={tmp_path}/{i}")
        assert (code, err) == (0, ""), flags
    for target in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"tpu_scripts/\w+\.sh", text):
        assert (guide.parent / target).exists() or (ROOT / target).exists(), target


@pytest.mark.slow
def test_rendering_starts_no_device_and_no_tensorflow(tmp_path):
    """A process that holds a TPU would keep it from the jobs that it starts."""
    program = (
        "import sys; from mujax import main; from jax._src import xla_bridge as bridge;"
        "code = main.run(['launch', '--config=tests/data/six_points.py', "
        f"'--workdir={tmp_path}/w', '--engine=slurm',"
        f" '--out={tmp_path}/out']);"
        "assert code == 0 and not bridge.backends_are_initialized();"
        "assert not {'tensorflow', 'seqio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_local_jobs_finish_a_sweep(launch, text_file, tmp_path, monkeypatch):
    """The real thing: two shards of a point each, and what is said to do with them."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    (tmp_path / "config.py").write_text(
        "from configs import base\n\n\ndef get_config():\n    c = base.get_config('mlp')\n"
        "    c.sweep.optim = {'learning_rate': (0.01, 0.02)}\n    return c\n"
    )
    small = ["train.steps=3", "schedule.warmup_steps=1", "train.eval_batches=1", "data.name=text"]
    flags = [
        "--engine=local",
        "--shards=2",
        f"--workdir={tmp_path / 'w'}",
        f"--config.data.path={text_file}",
    ]
    fields = [f"--config.{field}" for field in small]
    code, printed, err = launch(*flags, *fields, out=None, config=tmp_path / "config.py")
    assert (code, err) == (0, "")
    merge = next(line for line in printed.splitlines() if line.startswith("mujax merge"))
    assert main.run(shlex.split(merge)[1:]) == 0
    rows = [json.loads(line) for line in (tmp_path / "w/results.jsonl").read_text().splitlines()]
    assert [(row["learning_rate"], row["status"]) for row in rows] == [(0.01, "ok"), (0.02, "ok")]
