"""From the words of a command line to the values of a verb's flags."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mujax.cli.verb import Verb
from mujax.errors import UserError, suggest

PLACEHOLDERS = {
    "workdir": "DIR", "sources": "DIR,DIR", "shapes": "FILE", "base_shapes": "FILE", "learning_rate": "X",
}  # fmt: skip


def parse(verb: Verb, argv: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments of a verb's function.

    Raises:
      UserError: an unknown or missing flag, a config file that fails, or a field that does not exist.
    """
    argv = _joined(argv)
    takes_config = "config" in verb.required
    values = flags.FlagValues()
    names = verb.required + verb.optional
    for name in names:
        if name in verb.switches:
            flags.DEFINE_boolean(name, False, "", flag_values=values)
        elif name != "config":
            flags.DEFINE_string(name, None, "", flag_values=values)
    if takes_config:
        _check_overrides(_load_config(verb.name, argv), argv)
    try:
        if takes_config:  # here, because it already reads the files that --flagfile names
            config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=["mujax", *argv])
        rest = values(["mujax", *argv])[1:]
    except flags.UnrecognizedFlagError as e:
        raise UserError(f"unknown flag --{e.flagname}{suggest(e.flagname, names)}; see mujax {verb.name} --help") from e
    except (flags.Error, OSError, TypeError, ValueError) as e:
        raise UserError(f"{e}; see mujax {verb.name} --help") from e
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    for name in verb.required:
        if not values[name].value:
            raise UserError(
                f"{verb.name} needs --{name}={PLACEHOLDERS.get(name, 'NAME')}; see mujax {verb.name} --help"
            )
    kwargs: dict[str, Any] = {name: values[name].value for name in names}
    if takes_config:
        kwargs["config"] = kwargs["config"].to_dict()
    if verb.takes_argv:
        kwargs["argv"] = argv
    return kwargs


def _joined(argv: Sequence[str]) -> list[str]:
    """-name and --name value -> --name=value, the one form in which config_flags and we look for a config."""
    joined: list[str] = []
    for arg in argv:
        if not arg.startswith("-") or re.match(r"-\.?\d", arg):  # a negative number is a value
            takes_value = joined and joined[-1].startswith("--") and "=" not in joined[-1]
            if takes_value:
                joined[-1] += f"={arg}"
                continue
        joined.append(f"-{arg}" if re.match("-[a-z]", arg) else arg)
    return joined


def _load_config(verb: str, argv: Sequence[str]) -> ConfigDict:
    """The config file alone, without overrides, so that its own errors are told apart from theirs."""
    found = [arg for arg in argv if arg.startswith("--config=")]
    if not found:
        raise UserError(f"{verb} needs --config=FILE.py, for example --config=configs/base.py")
    path = found[-1].partition("=")[2].partition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"--config={path}: no such file")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=["mujax", found[-1]])
    try:
        values(["mujax", found[-1]])
    except (Exception, SystemExit) as e:  # a config file is the user's code and may raise anything
        cause: BaseException = e  # config_flags wraps what get_config raised
        while inner := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
            cause = inner
        raise UserError(f"--config={path}: {type(cause).__name__}: {cause}") from e
    if not isinstance(values.config, ConfigDict):
        raise UserError(f"--config={path}: get_config() returned {type(values.config).__name__}, not a ConfigDict")
    return values.config


def _check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
    for arg in argv:
        if not arg.startswith("--config."):
            continue
        flag = arg.partition("=")[0]
        fields = flag.removeprefix("--config.").split(".")
        node: Any = config
        for name in fields:
            if not isinstance(node, ConfigDict) or name not in node:
                names = list(node) if isinstance(node, ConfigDict) else []
                if fields[0] == "sweep" and len(fields) > 1:
                    raise UserError(f"{flag}: the config sweeps no such axis; name it in the config file, in c.sweep")
                raise UserError(f"{flag}: the config has no such field{suggest(name, names)}")
            node = node[name]
        if "=" in arg:
            _check_value(flag, arg.partition("=")[2], node)


KINDS = {int: (int, "a whole number"), float: (float, "a number")}


def _check_value(flag: str, text: str, before: Any) -> None:
    """That a field's new value is of the type of the one before, as far as a section or a number goes."""
    if isinstance(before, ConfigDict) and len(before):
        raise UserError(f"{flag}={text}: this is a section; set a field of it, e.g. {flag}.{next(iter(before))}=...")
    if isinstance(before, bool) and text.lower() not in ("true", "false", "t", "f", "1", "0"):
        raise UserError(f"{flag}={text} is not True or False")
    read, words = KINDS.get(type(before), (str, ""))
    try:
        read(text)
    except ValueError:
        raise UserError(f"{flag}={text} is not {words}") from None


def number(flag: str, text: str | None, default, least, most=math.inf):
    """The value of a flag, a number of the kind of its default.

    Raises:
      UserError: it is no such number, or out of range.
    """
    kind = type(default)
    try:
        value = default if text is None else kind(text)
    except ValueError:
        raise UserError(f"--{flag}={text} is not a {'whole ' if kind is int else ''}number") from None
    if not (math.isfinite(value) and least <= value <= most):
        raise UserError(f"--{flag}={text} must be at least {least}" + (f", at most {most}" if most < math.inf else ""))
    return value


def numbers(flag: str, text: str | None) -> list[int]:
    """'32,64' -> [32, 64].

    Raises:
      UserError: not whole numbers, or one below 1.
    """
    try:
        values = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"--{flag}={text} is not a whole number, or several between commas") from None
    if any(value < 1 for value in values):
        raise UserError(f"--{flag}={text}: a number must be at least 1")
    return values
