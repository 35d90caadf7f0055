"""Invalid command lines in words, with a hint for flags that other servers have."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

COMMANDS_WITH_HINTS = ("smoe serve", "smoe doctor")  # they have every flag that a hint names
# Flags of vLLM and llama.cpp, with what does the same here.
FOREIGN_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--gpu-memory-utilization": "--kv-cache-memory-bytes SIZE sets the size of the KV cache",
        "--ctx-size": "--max-model-len N sets the context",
        "-c": "--max-model-len N sets the context",
        "--mlock": "--weights-memory lock keeps the weights of a pack in memory",
        "--jinja": "chat templates are always used, without a flag",
        "--n-gpu-layers": "--device puts the whole model on the GPU or on the CPU",
        "-ngl": "--device puts the whole model on the GPU or on the CPU",
        "--enable-prefix-caching": "the prefix cache is on unless --no-enable-prefix-caching is given",
    }
)


def usage_line(error: Any, arguments: Sequence[str], root: Any) -> str:
    """Return click's usage error with the command's help, in one line.

    `arguments`: the command line after "smoe". `root`: click's command of that name.
    """
    command = _command(error, arguments, root)
    hint = _hint(error, arguments) if command in COMMANDS_WITH_HINTS else ""
    message = f"No such option: {hint}" if hint else _in_words(error)
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


def _hint(error: Any, arguments: Sequence[str]) -> str:
    """Return another server's flag with its counterpart here, or the whole word of an unknown short flag; "" if the
    error names the option well."""
    unknown = getattr(error, "option_name", None)
    if unknown is None:
        return ""
    flag = next((word for word in arguments if not word.startswith("--") and word[:2] == unknown), unknown)
    if flag in FOREIGN_FLAGS:
        return f"{flag}; {FOREIGN_FLAGS[flag]}"
    return flag if flag != unknown else ""  # -ngl is reported as -n


def _in_words(error: Any) -> str:
    """Return the message of an invalid command line. A wrong value is described as one of a setting is."""
    message: str = error.format_message()
    if not hasattr(error.__cause__, "errors"):  # no pydantic.ValidationError
        return message
    from server.settings.faults import describe

    return f"{message.partition(': ')[0]}: {describe(error.__cause__.errors())}"
