"""README and guides as data: their pages, links and commands; and a way to run the commands at a
small size."""

import contextlib
import importlib.util
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

from conftest import ROOT, run_mujax

from mujax.cli.verb import CHECK_FAILED, FINISHED
from mujax.main import run

README, DOCS = ROOT / "README.md", ROOT / "docs"
GUIDES = sorted(DOCS.glob("*.md"))
PAGES = [README, *GUIDES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "experiments").glob("*/*.md"))]

# The same commands at a size that a test can afford
SMALL = [
    "--config.train.steps=3",
    "--config.schedule.warmup_steps=1",
    "--config.train.eval_batches=1",
]
SMALL += ["--config.train.batch_size=4", "--config.refine.log2_step=0.0"]


def name(page: Path) -> str:
    """The page's path from the repository's root, as a test's id."""
    return str(page.relative_to(ROOT))


def shell_lines(page: Path) -> list[str]:
    """Every command of the page's bash blocks; a command of several lines is one."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    return [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


def commands(page: Path) -> list[list[str]]:
    """The page's mujax commands as [verb, *flags], in order."""
    return [shlex.split(line)[1:] for line in shell_lines(page) if line.startswith("mujax ")]


def links(page: Path) -> list[str]:
    return [target.strip() for target in re.findall(r"\]\(([^)]+)\)", page.read_text())]


def heading_ids(page: Path) -> set[str]:
    """Ids as GitHub makes them: lower case, hyphens for blanks, no other signs."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def grouped(found: list[list[str]]) -> list[list[list[str]]]:
    """Commands that name a folder in common, in the order of the page, so that a report finds the
    sweep before it."""
    groups = []  # (folders, numbers of the commands)
    for i, (_, *flags) in enumerate(found):
        folders = set(re.findall(r"=(runs/[\w*-]+)", " ".join(flags)))
        near = [
            g
            for g in groups
            if any(fnmatch(earlier, folder) for earlier in g[0] for folder in folders)
        ]
        groups = [g for g in groups if g not in near]
        groups.append(
            (folders.union(*(g[0] for g in near)), sorted(sum((g[1] for g in near), [i])))
        )
    return [[found[i] for i in numbers] for _, numbers in groups]


def run_here(capsys, *args: str) -> tuple[int, str]:
    """Runs the command line in this process, in the repository's root: (exit code, messages)."""
    with contextlib.chdir(ROOT):
        code = run(args)
    return code, capsys.readouterr().err


def run_alone(*args: str) -> tuple[int, str]:
    """Runs the command line in a process of its own, as on the cores of a reader."""
    done = run_mujax(*args, timeout=900)
    return done.returncode, done.stderr


def run_group(group, tmp_path, read, train, check=("--widths=16,32,48,64",), fails=()) -> None:
    """Runs the commands in folders of their own.

    Args:
      read, train: run the command line, of a verb that reads results or of another one; see
        run_here and run_alone.
      check: more flags of that verb.
      fails: configs of which it says that they are wrong.
    """
    for verb, *flags in group:
        if verb == "plan" and importlib.util.find_spec("libtpu") is None:
            continue  # test_plan has it
        extra = (
            SMALL if verb in ("train", "sweep") and not {"--dry_run", "--help"} & {*flags} else []
        )
        if verb == "check":
            extra = [*check]
        if extra and any("kalra2026" in flag for flag in flags):
            extra = [*extra, "--config.schedule.decay_steps=1"]
        if verb == "sweep" and extra and not any("d_model" in flag for flag in flags):
            extra = [*extra, "--config.sweep.model.d_model=(48,)"]
        flags = [flag.replace("=runs/", f"={tmp_path}/") for flag in flags]
        is_reading = verb in ("explain", "launch", "merge", "report") or "--dry_run" in flags
        code, said = (read if is_reading else train)(verb, *flags, *extra)
        is_wrong = any(config in flag for config in fails for flag in flags)
        assert code == (CHECK_FAILED if is_wrong and verb == "check" else FINISHED), (
            verb,
            flags,
            said[-500:],
        )
        if verb == "report":
            (workdir,) = (flag.partition("=")[2] for flag in flags if flag.startswith("--workdir="))
            assert (Path(workdir) / "report.html").exists()
