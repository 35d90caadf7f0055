"""Reads settings: flags override SMOE_* variables, which override the YAML file of --config. The rest are defaults.

The only module that reads the environment.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from server.model_files.stores import ModelStores
from server.settings.faults import describe
from server.settings.settings import PREFIX, Settings, flag_name
from server.settings.value_types import IS_SUCCESSOR, READ_ONCE, parse_size

FIRST_INHERITED_FD = 3  # as for all programs that systemd starts: sd_listen_fds(3)
MAX_INHERITED = 16
KUBERNETES = re.compile(
    r"SMOE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)
MIN_BYTES_WITHOUT_UNIT = 1 << 20
ADDRESS_SETTINGS = ("host", "port", "uds", "root_path", "ssl_certfile", "ssl_keyfile", "allowed_hosts")
WITHOUT_ADDRESS = f"{PREFIX}CONFIG_WITHOUT_ADDRESS"  # set by commands for a server of their own, never by people
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # read by torch; the second is its old name
READY_NAME = "smoe-ready"  # name of the pipe on which a new process reports that it is ready
FIRST_PROCESS_NAME = "smoe-first-process"  # name of a descriptor of the process whose id the server has for others
# Settings -> variables that torchrun and other launchers set for each of several processes. All of them count, or none.
LAUNCHER = {
    "nnodes": "WORLD_SIZE",
    "node_rank": "RANK",
    "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
    "tensor_parallel_size": "WORLD_SIZE",
}
LOCAL_RANK = "LOCAL_RANK"  # number of a launched process on its host, which gets this GPU
GROUP = ("nnodes", "node_rank", "master_addr", "master_port")


class SettingsError(Exception):
    """An invalid setting. One line that names the flag, the variable or the file's key."""


def load_settings(flags: Mapping[str, Any], config_file: Path | None = None) -> Settings:
    """Return the settings from the given flags, the environment, and `config_file` (or the file of SMOE_CONFIG).

    Raises SettingsError.
    """
    config_file = _config_file(config_file)
    variables, file = _sources_below(flags, config_file)
    given = {**file, **variables, **flags}
    launched = _launched(given)
    _check_text(given, flags, variables, config_file)
    try:
        return Settings.model_validate({**launched, **given}, context={IS_SUCCESSOR: _is_successor()})
    except ValidationError as error:
        raise SettingsError(_one_line(error, flags, variables, launched, config_file)) from None


def _check_text(
    given: Mapping[str, Any], flags: Mapping[str, Any], variables: Mapping[str, str], config_file: Path | None
) -> None:
    """Raise SettingsError for bytes that are not UTF-8: the engine, replies and metrics could not have them."""
    for name, value in given.items():
        values = value if isinstance(value, list | tuple) else [value]
        if not all(is_utf8(str(one)) for one in values if isinstance(one, str | Path)):
            source = _origin(name, flags, variables, f"{config_file}: {name}")
            raise SettingsError(f"{source}: is not UTF-8")


def is_utf8(text: str) -> bool:
    """Return False for text of an argument or a variable with other bytes, which Python keeps as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def origins(flags: Mapping[str, Any], config_file: Path | None = None) -> dict[str, str]:
    """Return the source of each setting's value: "--port", "SMOE_PORT", the file's name or "default".

    Raises SettingsError.
    """
    config_file = _config_file(config_file)
    variables, file = _sources_below(flags, config_file)
    launched = _launched({**file, **variables, **flags})
    sources = {name: LAUNCHER.get(name, LOCAL_RANK) for name in launched} | dict.fromkeys(file, str(config_file))
    return {name: _origin(name, flags, variables, sources.get(name, "default")) for name in Settings.model_fields}


def _sources_below(flags: Mapping[str, Any], config_file: Path | None) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the values of variables and of the file. Flags for an address override a Unix socket that these have."""
    variables, file = _variables(), _read_config(config_file)
    if "uds" not in flags and not flags.keys().isdisjoint({"host", "port"}):
        variables.pop("uds", None)
        file.pop("uds", None)
    return variables, file


def launcher_attempt(settings: Settings) -> int | None:
    """Return how often torchrun has started this group of processes again; None if it has not started it.

    torchrun's agent listens at the master port, and starts all processes again when one of them ends.
    """
    is_from_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and all(
        str(getattr(settings, name)) == os.environ.get(LAUNCHER[name]) for name in GROUP
    )
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if is_from_torchrun else None


def _launched(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that a launcher has set, if it has set all and none of GROUP is given."""
    values = {name: os.environ.get(variable, "") for name, variable in LAUNCHER.items()}
    is_group = all(values.values()) and values["nnodes"] != "1"
    if not is_group or any(name in given for name in GROUP):
        return {}
    local_rank = os.environ.get(LOCAL_RANK, "")
    return values | ({"first_gpu": local_rank} if local_rank else {})


def parse_size_flag(flag: str, text: str) -> int:
    """Return the bytes in a flag's text; more than 0. Raises SettingsError that names the flag.

    A small number without a unit is refused: whoever writes 80 means 80GiB.
    """
    try:
        num_bytes = parse_size(text)
    except ValueError as error:
        raise SettingsError(f"{flag}: {error}") from None
    if not isinstance(num_bytes, int) or num_bytes < 1:
        raise SettingsError(f"{flag}: should be more than 0 bytes")
    if num_bytes < MIN_BYTES_WITHOUT_UNIT and text.strip().isdecimal():
        raise SettingsError(f"{flag} {text.strip()}: these are bytes; add a unit, such as {text.strip()}GiB")
    return num_bytes


def model_stores() -> ModelStores:
    """Return the folders where other programs keep models on this machine."""
    home = Path.home()
    lm_studio = (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models")
    return ModelStores(
        _hub_cache_dir(), lm_studio, Path(os.environ.get("OLLAMA_MODELS") or home / ".ollama" / "models")
    )


def _hub_cache_dir() -> Path:
    """Return the directory where Hugging Face's tools keep downloaded models."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "huggingface" / "hub"


def state_dir() -> Path:
    """Return the directory for files that outlive a command, such as the history of `smoe chat`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "smoe"


def is_plain_terminal() -> bool:
    """Return whether the terminal, if there is one, obeys no control sequences (TERM=dumb)."""
    return os.environ.get("TERM", "dumb") == "dumb"


def allows_colours() -> bool:
    """Return whether a terminal, if there is one, may get colours: not with TERM=dumb, nor with NO_COLOR set."""
    return not is_plain_terminal() and not os.environ.get("NO_COLOR")


def environment_without_address() -> dict[str, str]:
    """Return this process' environment for a server with an address of its own: variables that give one are left out,
    and the settings that give one in the file of SMOE_CONFIG do not count."""
    hidden = {PREFIX + name.upper() for name in ADDRESS_SETTINGS}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in hidden}
    return {**kept, WITHOUT_ADDRESS: "1"}


def engine_environment() -> dict[str, str]:
    """Return this process' environment for an engine.

    Unless a variable of torch's allocator is set, memory on a GPU is reserved in segments that grow, so that steps of
    changing sizes leave fewer gaps that the KV cache cannot use.
    """
    is_set = any(os.environ.get(name) for name in ALLOCATOR_VARIABLES)
    return {**os.environ} if is_set else {**os.environ, ALLOCATOR_VARIABLES[0]: "expandable_segments:True"}


def inherited_descriptors() -> dict[str, int]:
    """Return the descriptors that systemd or a predecessor has passed to this process, by name.

    They and the variables that describe them are not passed on to children.
    """
    variables = [os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
    pid, count, names = variables
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    fds = range(FIRST_INHERITED_FD, FIRST_INHERITED_FD + min(int(count), MAX_INHERITED))
    for fd in fds:
        os.set_inheritable(fd, False)
    known = names.split(":")
    return {known[i] if i < len(known) and known[i] else str(fd): fd for i, fd in enumerate(fds)}


def _is_successor() -> bool:
    """Return whether SIGHUP has started this process, beside one that waits for it. Before inherited_descriptors."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return READY_NAME in names and os.environ.get("LISTEN_PID") == str(os.getpid())


def successor_environment(names: Sequence[str]) -> dict[str, str]:
    """Return this process' environment with the variables that announce inherited descriptors of these names.

    LISTEN_PID is left for the new process to set.
    """
    return {**os.environ, "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}


def _variables() -> dict[str, str]:
    """Return the values of SMOE_* variables by setting. Empty variables and unknown names count as unset.

    Case does not matter. Unknown names must pass: Kubernetes adds variables such as SMOE_SERVICE_HOST to pods.
    """
    values = {name.upper(): value for name, value in os.environ.items() if value}
    names = ((name, PREFIX + name.upper()) for name in Settings.model_fields)
    return {name: values[variable] for name, variable in names if variable in values}


def unknown_variables() -> list[str]:
    """Return a line for each SMOE_* variable that is no setting, with the one that is probably meant.

    Those that Kubernetes sets for Services named smoe or smoe-... are left out.
    """
    known = {PREFIX + name.upper() for name in (*Settings.model_fields, "config")}
    given = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name != WITHOUT_ADDRESS)
    unknown = [name for name in given if name.upper() not in known and not KUBERNETES.fullmatch(name)]
    return [f"{name} is not a setting{_suggestion(name, known)}" for name in unknown]


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.upper().removeprefix(PREFIX), (one.removeprefix(PREFIX) for one in known), 1)
    return f"; did you mean {PREFIX}{close[0]}?" if close else ""


def _config_file(given: Path | None) -> Path | None:
    named = next((value for name, value in os.environ.items() if name.upper() == f"{PREFIX}CONFIG"), "")
    return Path(named) if given is None and named else given


def _read_config(path: Path | None) -> dict[str, Any]:
    """Return the YAML file's values by setting. Keys may have dashes, as flags do, and capitals, as variables do.

    Raises SettingsError; also for an empty file at SIGHUP, when the new server would have no keys.
    """
    if path is None:
        return {}
    import yaml  # only here: most starts have no file

    try:
        text = path.read_text()
        content = yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: not UTF-8, or a date such as 2026-99-99
        raise SettingsError(f"--config {path}: this is not YAML") from None
    if not text.strip() and _is_successor():
        raise SettingsError(f"--config {path}: is empty; {READ_ONCE}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path}: should contain `key: value` lines")
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_").lower()
        if name in values:
            raise SettingsError(f"--config {path}: {name} is there twice, in different spellings")
        values[name] = value
    ignored = ADDRESS_SETTINGS if os.environ.get(WITHOUT_ADDRESS) else ()
    return {name: value for name, value in values.items() if name not in ignored}


def _origin(name: str, flags: Mapping[str, Any], variables: Mapping[str, str], otherwise: str) -> str:
    if name in flags:
        return flag_name(name)
    return PREFIX + name.upper() if name in variables else otherwise


def _one_line(
    error: ValidationError,
    flags: Mapping[str, Any],
    variables: Mapping[str, str],
    launched: Mapping[str, str],
    config_file: Path | None,
) -> str:
    errors = error.errors(include_url=False)
    if not errors[0]["loc"]:
        return describe(errors[:1])
    name = str(errors[0]["loc"][0])
    otherwise = LAUNCHER.get(name, LOCAL_RANK) if name in launched else f"{config_file}: {name}"
    source = _origin(name, flags, variables, otherwise)
    fault = describe([other for other in errors if other["loc"][:1] == (name,)])
    if name not in Settings.model_fields:
        close = difflib.get_close_matches(name, Settings.model_fields, 1)
        return f"{source}: {fault}" + (f"; did you mean {close[0]}?" if close else "")
    return f"{source}: {fault}{_kubernetes_hint('' if name in flags else variables.get(name, ''))}"


def _kubernetes_hint(value: str) -> str:
    """Explain tcp:// values: Kubernetes sets SMOE_PORT=tcp://... in every pod next to a Service named smoe."""
    if value.startswith("tcp://"):
        return f" (it is {value}, set by Kubernetes for a Service named smoe: use enableServiceLinks: false)"
    return ""
