"""The server's settings: command line before SMOE_* variables before the YAML file before defaults.

The only place that reads the environment.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    FilePath,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from engine.config import EngineConfig

PREFIX = "SMOE_"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
MAX_SIZE_DIGITS = 20
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)


class SettingsError(Exception):
    """A setting that cannot be. One line that names the flag, the variable or the file's key."""


def byte_size(value: object) -> object:
    """Bytes from "1GiB", "512M", "1.5 GB": binary units with an i, decimal ones without. Other types pass."""
    if not isinstance(value, str):
        return value
    match = SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("should be a number of bytes, or one with a unit such as 512MiB or 1.5GiB")
    number, unit = match.groups()
    if len(number) > MAX_SIZE_DIGITS:
        raise ValueError("is more than any machine has")
    return int(float(number) * UNITS[(unit or "").lower()])


def listed(value: object) -> object:
    """The items of "a,b", as an environment variable has them. Other types pass."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


Bytes = Annotated[PositiveInt, BeforeValidator(byte_size)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]


class Settings(BaseSettings):
    """What `smoe serve` is told. Names and meanings follow the flags; None means: derived."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    model: str | None = None
    verify: bool = False
    served_model_name: Names = ()
    chat_template: FilePath | None = None
    generation_config: Literal["auto", "none"] = "auto"
    strict_params: bool = False
    strict_roles: bool = False
    tool_emulation: bool = False

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_key: Names = Field((), repr=False)
    allowed_origins: Names = ()
    root_path: str = ""
    ssl_keyfile: FilePath | None = None
    ssl_certfile: FilePath | None = None
    max_body_bytes: Bytes = 1 << 20
    max_num_queued_reqs: PositiveInt = 1024
    max_num_queued_tokens: PositiveInt | None = None
    shutdown_timeout: float = Field(60.0, ge=0, allow_inf_nan=False)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "reference", "native", "triton"] = "auto"
    deterministic: bool = False
    isa: Literal["auto", "portable", "avx2", "avx512", "avx512bf16", "amx"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "int8", "int4", "fp8"] = "none"
    kv_cache_dtype: Literal["auto", "bf16", "int8"] = "auto"
    threads: PositiveInt | None = None
    max_model_len: PositiveInt | None = None
    max_num_seqs: PositiveInt = 256
    max_num_batched_tokens: PositiveInt | None = None
    block_size: int = Field(16, ge=1, le=1024)
    kv_cache_memory_bytes: Bytes | None = None
    num_kv_blocks: PositiveInt | None = None
    no_enable_prefix_caching: bool = False
    scheduling_policy: Literal["priority", "fcfs"] = "priority"
    async_scheduling: bool | None = None  # None: on a GPU
    seed: int | None = None
    sliding_window: Literal["model", "none"] | PositiveInt = "model"
    experts_per_token: PositiveInt | None = None

    metrics_compat: Literal["vllm", "none"] = "vllm"
    metrics_auth: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("api_key", "served_model_name")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name or name != name.strip() for name in names):
            raise ValueError("should not be empty or have blanks at its ends")
        if len(set(names)) != len(names):
            raise ValueError("is given twice with the same value")
        return names

    @field_validator("root_path")
    @classmethod
    def _root(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not path.startswith("/"):
            raise ValueError("should start with /")
        return path

    @model_validator(mode="after")
    def _compatible(self) -> "Settings":
        if self.num_kv_blocks is not None and self.kv_cache_memory_bytes is not None:
            raise ValueError("--num-kv-blocks and --kv-cache-memory-bytes exclude each other: give one")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("--ssl-keyfile and --ssl-certfile need each other: give both")
        if self.metrics_auth and not self.api_key:
            raise ValueError("--metrics-auth needs an --api-key to ask for")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load_settings` passes {"flags": ..., "file": ...}: the environment goes between the two."""
        assert isinstance(init_settings, InitSettingsSource)
        layers = init_settings.init_kwargs
        flags = InitSettingsSource(settings_cls, layers.get("flags", {}))
        file = InitSettingsSource(settings_cls, layers.get("file", {}))
        return flags, env_settings, file


def load_settings(flags: Mapping[str, Any], config_file: Path | None = None) -> Settings:
    """Settings from the flags that were given, the environment, and `config_file` (or SMOE_CONFIG's).

    Raises SettingsError.
    """
    config_file = _config_file(config_file)
    from_file = {} if config_file is None else _read_yaml(config_file)
    try:
        return Settings(flags=flags, file=from_file)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError(_one_line(error, flags, config_file)) from None


def origins(flags: Mapping[str, Any], config_file: Path | None = None) -> dict[str, str]:
    """Where each setting's value comes from: "--port", "SMOE_PORT", the file's name or "default"."""
    config_file = _config_file(config_file)
    from_file = {} if config_file is None else _read_yaml(config_file)
    return {name: _origin(name, flags, config_file if name in from_file else None) for name in Settings.model_fields}


def shown(settings: Settings, name: str) -> str:
    """A setting's value in one line. Keys stay secret; what is derived when the server starts is "-"."""
    value = getattr(settings, name)
    if value in (None, (), ""):
        return "-"
    if name == "api_key":
        return f"{len(value)} of them"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def size_flag(name: str, text: str) -> int:
    """The bytes in a flag's text; positive. Raises SettingsError that names the flag."""
    try:
        num_bytes = byte_size(text)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None
    if not isinstance(num_bytes, int) or num_bytes < 1:
        raise SettingsError(f"{name}: should be more than 0 bytes")
    return num_bytes


def engine_config(settings: Settings, model_dir: Path) -> EngineConfig:
    """The engine's share of the settings."""
    return EngineConfig(
        model=str(model_dir),
        verify=settings.verify,
        device=settings.device,
        backend=settings.backend,
        deterministic=settings.deterministic,
        isa=settings.isa,
        dtype=settings.dtype,
        quantization=settings.quantization,
        kv_cache_dtype=settings.kv_cache_dtype,
        threads=settings.threads,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        block_size=settings.block_size,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        num_kv_blocks=settings.num_kv_blocks,
        enable_prefix_caching=not settings.no_enable_prefix_caching,
        scheduling_policy=settings.scheduling_policy,
        num_tenants=max(1, len(settings.api_key)),
        async_scheduling=settings.async_scheduling,
        sliding_window=settings.sliding_window,
        experts_per_token=settings.experts_per_token,
    )


def hub_cache_dir() -> Path:
    """Where Hugging Face's own tools keep downloaded models on this machine."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "huggingface" / "hub"


def state_dir() -> Path:
    """Where what outlives a command is kept, such as the lines of earlier chats."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "smoe"


def _config_file(given: Path | None) -> Path | None:
    """The file that was given, or that SMOE_CONFIG names."""
    named = os.environ.get(f"{PREFIX}CONFIG")
    return Path(named) if given is None and named else given


def _origin(name: str, flags: Mapping[str, Any], file_with_it: Path | None) -> str:
    if name in flags:
        return f"--{name.replace('_', '-')}"
    if os.environ.get(PREFIX + name.upper()):
        return PREFIX + name.upper()
    return "default" if file_with_it is None else str(file_with_it)


def _read_yaml(path: Path) -> dict[str, Any]:
    """The file's keys as field names. Keys may be spelled as the flags are."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingsError(f"--config {path}: this is not YAML") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path}: should hold `key: value` lines")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _one_line(error: ValidationError, flags: Mapping[str, Any], config_file: Path | None) -> str:
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    variable = PREFIX + name.upper()
    if name in flags:
        source = f"--{name.replace('_', '-')}"
    elif os.environ.get(variable):
        source = variable
    else:
        source = f"{config_file}: {name}"
    if first["type"] == "extra_forbidden":
        return f"{source}: there is no such setting"
    return f"{source}: {message}{_cause(source, os.environ.get(variable, ''))}"


def _cause(source: str, value: str) -> str:
    """Kubernetes sets PREFIX_PORT=tcp://... in every pod next to a Service called like the prefix."""
    if source.startswith(PREFIX) and value.startswith("tcp://"):
        return f" (it is {value}, set by Kubernetes for a Service named smoe: use enableServiceLinks: false)"
    return ""
