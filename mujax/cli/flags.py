"""The flags of a verb, parsed from the words of a command line."""

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mujax.cli.verb import Verb
from mujax.errors import UserError, cut, suggest

DEEPEST = 16  # levels of nested sections; mujax has 2
PLACEHOLDERS = {
    "workdir": "DIR", "sources": "DIR,DIR", "shapes": "FILE", "base_shapes": "FILE",
    "learning_rate": "X",
}  # fmt: skip


def parse(verb: Verb, argv: Sequence[str]) -> dict[str, Any]:
    """Returns the keyword arguments of a verb's function.

    Raises:
      UserError: an unknown or missing flag, a config file that fails, or a field that does not
        exist.
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
        if takes_config:  # inside `try`, because it already reads the files that --flagfile names
            config_flags.DEFINE_config_file(
                "config", None, "", flag_values=values, sys_argv=["mujax", *argv]
            )
        rest = values(["mujax", *argv])[1:]
    except flags.UnrecognizedFlagError as e:
        name = cut(e.flagname)
        raise UserError(
            f"unknown flag --{name}{suggest(name, names)}; see mujax {verb.name} --help"
        ) from e
    except BaseException as e:
        # An error of the config file, which is read again, or of parsing a value.
        _raise_interrupt(e)
        raise UserError(f"{cut(_text(e), 300)}; see mujax {verb.name} --help") from e
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    for name in verb.required:
        if not values[name].value:
            raise UserError(
                f"{verb.name} needs --{name}={PLACEHOLDERS.get(name, 'NAME')}; see mujax "
                f"{verb.name} --help"
            )
    kwargs: dict[str, Any] = {name: values[name].value for name in names}
    if takes_config:
        try:
            kwargs["config"] = kwargs["config"].to_dict()
        except Exception as e:  # an unfilled placeholder, or a section that contains itself
            raise UserError(f"--config: {type(e).__name__}: {cut(_text(e), 300)}") from e
        _check_nesting(kwargs["config"])
    if verb.takes_argv:
        kwargs["argv"] = argv
    return kwargs


def _joined(argv: Sequence[str]) -> list[str]:
    """Rewrites -name and --name value as --name=value, the only form in which configs are found."""
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
    """Loads the config file alone, to tell its own errors apart from those of overrides."""
    found = [arg for arg in argv if arg.startswith("--config=")]
    if not found:
        raise UserError(f"{verb} needs --config=FILE.py, for example --config=configs/base.py")
    path = found[-1].partition("=")[2].partition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"--config={path}: no such file")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, sys_argv=["mujax", found[-1]]
    )
    try:
        values(["mujax", found[-1]])
    except BaseException as e:  # a config file is user code and may raise anything
        _raise_interrupt(e)
        cause = _cause(e)  # config_flags wraps what get_config raised
        raise UserError(f"--config={path}: {type(cause).__name__}: {cut(_text(cause), 300)}") from e
    if not isinstance(values.config, ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returned {type(values.config).__name__}, not a "
            "ConfigDict"
        )
    return values.config


def _check_nesting(tree: dict[str, Any], depth: int = 0) -> None:
    if depth > DEEPEST:
        raise UserError(
            f"--config: sections are nested more than {DEEPEST} deep, or one is in itself"
        )
    for value in tree.values():
        if isinstance(value, dict):
            _check_nesting(value, depth + 1)


def _cause(e: BaseException) -> BaseException:
    """Returns the exception at the start of the chain that led to this one."""
    seen = {id(e)}
    while inner := e.__cause__ or (None if e.__suppress_context__ else e.__context__):
        if id(inner) in seen:
            break
        seen.add(id(inner))
        e = inner
    return e


def _text(e: BaseException) -> str:
    try:
        return str(e)
    except Exception:  # the exception's class may be user code, too
        return "without a message"


def _raise_interrupt(e: BaseException) -> None:
    """Raises the exception by which the user interrupted the command.

    The command's own handler raises its own class; with it, a KeyboardInterrupt comes from a config
    file.
    """
    is_interrupt = isinstance(e, KeyboardInterrupt)
    if is_interrupt and (
        type(e) is not KeyboardInterrupt or signal.getsignal(signal.SIGINT) is _PYTHONS
    ):
        raise e


_PYTHONS = signal.default_int_handler


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
                    raise UserError(
                        f"{flag}: the config sweeps no such axis; name it in the config file, in "
                        "c.sweep"
                    )
                raise UserError(f"{flag}: the config has no such field{suggest(name, names)}")
            node = node[name]
        if "=" in arg:
            _check_value(flag, arg.partition("=")[2], node)


KINDS = {int: (int, "a whole number"), float: (float, "a number")}


def _check_value(flag: str, text: str, before: Any) -> None:
    """Raises UserError unless a field's new value fits the old type (sections and numbers)."""
    given = f"{flag}={cut(text)}"
    if isinstance(before, ConfigDict) and len(before):
        raise UserError(
            f"{given}: this is a section; set a field of it, e.g. {flag}.{next(iter(before))}=..."
        )
    if isinstance(before, bool) and text.lower() not in ("true", "false", "t", "f", "1", "0"):
        raise UserError(f"{given} is not True or False")
    read, words = KINDS.get(type(before), (str, ""))
    try:
        read(text)
    except ValueError:
        raise UserError(f"{given} is not {words}") from None


LARGEST = {int: 2**31 - 1, float: sys.float_info.max}  # of a flag; far above any real value


def number(flag: str, text: str | None, default, least, most=None):
    """Returns the value of a flag, a number of the type of its default.

    Raises:
      UserError: it is not such a number, or out of range.
    """
    kind = type(default)
    if text is None:
        return default
    try:
        value = kind(text)
    except ValueError:
        raise UserError(
            f"--{flag}={cut(text)} is not a {'whole ' if kind is int else ''}number"
        ) from None
    most = LARGEST[kind] if most is None else most
    if not least <= value <= most:
        bound = "" if most == sys.float_info.max else f", at most {most}"
        raise UserError(f"--{flag}={cut(text)} must be at least {least}{bound}")
    return value


def numbers(flag: str, text: str | None, most: int = LARGEST[int]) -> list[int]:
    """Parses '32,64' into [32, 64].

    Raises:
      UserError: not whole numbers, or one below 1 or above `most`.
    """
    given = f"--{flag}={cut(text or '')}"
    try:
        values = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"{given} is not a whole number, or several between commas") from None
    if any(value < 1 for value in values):
        raise UserError(f"{given}: a number must be at least 1")
    if any(value > most for value in values):
        raise UserError(f"{given}: a number must be at most {most}")
    return values
