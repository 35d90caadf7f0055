"""Invalid command lines in words, with a hint for words that other servers' commands have."""

import re
from collections.abc import Sequence
from typing import Any

from server.cli.foreign_words import FOREIGN_COMMANDS, FOREIGN_FLAGS

FLAG = re.compile(r"--[a-z-]+")


def usage_line(error: Any, arguments: Sequence[str], root: Any) -> str:
    """Return click's usage error with the command's help, in one line.

    `arguments`: the command line after "smoe". `root`: click's command of that name.
    """
    command = _command(error, arguments, root)
    message = _unknown_word(error, arguments) or _in_words(error)
    return message if "\n" in message else f"smoe: {message} (see {command} --help)"


def _command(error: Any, arguments: Sequence[str], root: Any) -> str:
    """Return the command whose options are wrong, such as "smoe bench serve"; of an option without value, which names
    none, the one that the command line begins with."""
    if error.ctx is not None:
        path: str = error.ctx.command_path
        return path
    words, commands = ["smoe"], root.commands
    for word in arguments:
        if word not in commands:
            break
        words.append(word)
        commands = getattr(commands[word], "commands", {})
    return " ".join(words)


def _unknown_word(error: Any, arguments: Sequence[str]) -> str:
    """Return a sentence about another program's flag or command, a whole unknown short flag, or a second value of a
    flag; "" if the error names the word well."""
    unknown = getattr(error, "option_name", None)
    if unknown is not None:
        return _unknown_flag(error, unknown, arguments)
    message: str = error.format_message()
    if message.startswith("No such command") and arguments and arguments[0] in FOREIGN_COMMANDS:
        return f"No such command '{arguments[0]}'; {FOREIGN_COMMANDS[arguments[0]]}"
    if message.startswith("Got unexpected extra argument") and _has_repeatable(error, arguments):
        return f"{message}; repeat the flag before each value"
    return ""


def _unknown_flag(error: Any, unknown: str, arguments: Sequence[str]) -> str:
    """Return a sentence with the counterpart of another server's flag, if the command has it."""
    flag = unknown
    if not unknown.startswith("--"):  # -ngl is reported as -n, and -hf as -f because -h exists
        short = (word for word in arguments if word.startswith("-") and not word.startswith("--"))
        flag = next((word for word in short if unknown[1:] in word), unknown)
    hint = FOREIGN_FLAGS.get(flag.rstrip("0123456789"), "")  # -c4096 is -c with its value
    if hint and _takes_model(error.ctx) and set(FLAG.findall(hint)) <= _flags(error.ctx):
        return f"No such option: {flag}; {hint}"
    return f"No such option: {flag}" if flag != unknown else ""


def _has_repeatable(error: Any, arguments: Sequence[str]) -> bool:
    """Return whether the command line has a flag that may be repeated."""
    if error.ctx is None:
        return False
    parameters = error.ctx.command.get_params(error.ctx)
    return any(getattr(one, "multiple", False) and not {*one.opts}.isdisjoint(arguments) for one in parameters)


def _takes_model(context: Any) -> bool:
    """Return whether the command has the argument MODEL: hints are about loading one."""
    parameters = context.command.get_params(context)
    return any(one.name == "model" and one.param_type_name == "argument" for one in parameters)


def _flags(context: Any) -> set[str]:
    return {flag for one in context.command.get_params(context) for flag in one.opts}


def _in_words(error: Any) -> str:
    """Return the message of an invalid command line. A wrong value is described as one of a setting is."""
    message: str = error.format_message()
    if not hasattr(error.__cause__, "errors"):  # no pydantic.ValidationError
        return message
    from server.settings.faults import describe

    return f"{message.partition(': ')[0]}: {describe(error.__cause__.errors())}"
