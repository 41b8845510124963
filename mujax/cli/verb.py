"""A verb of the command line, and its exit codes."""

import dataclasses
from collections.abc import Callable

FINISHED, CHECK_FAILED, USAGE_ERROR, DIVERGED = 0, 1, 2, 3

CONFIG_FLAGS = """\
  --config=FILE.py         a Python file with get_config(), e.g. configs/base.py; --helpfull
                           explains every field
  --config=FILE.py:ARG     the same, calling get_config(ARG)
  --config.FIELD=VALUE     sets one field, e.g. --config.optim.learning_rate=0.01"""


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command and its flags.

    help: the text of `mujax NAME --help`, which is the docstring of the verb's module (None under
      python -OO). It begins 'mujax NAME - summary.'; {config} stands for the flags that set the
      config, {tables} for what `tables` returns.
    run: returns the exit code. Its keyword arguments are the flags: the config as a dict, switches
      as booleans, all others as text, or None if an optional one is not given.
    switches: the optional flags that take no value.
    takes_argv: whether `run` also takes the command line as `argv`, with every flag as
      --name=value.
    """

    name: str
    help: str | None
    run: Callable[..., int]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    takes_argv: bool = False
    tables: Callable[[], str] = str

    def summary(self) -> str:
        return (self.help or "").partition("\n")[0].partition(" - ")[2]

    def help_text(self) -> str:
        return (self.help or "").format(config=CONFIG_FLAGS, tables=self.tables())
