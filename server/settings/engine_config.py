"""Maps the server's settings to the engine's configuration."""

from pathlib import Path

from engine.config import EngineConfig
from server.settings.settings import Settings


def engine_config(settings: Settings, model_dir: Path, launcher_attempt: int | None = None) -> EngineConfig:
    """Return the engine's part of `settings`. Fields with the same name have the same meaning in both.

    `launcher_attempt`: see server/settings/sources.py.
    """
    common = settings.model_dump(include=set(EngineConfig.__struct_fields__) - {"model", "lora", "step_log"})
    return EngineConfig(
        model=str(model_dir),
        enable_prefix_caching=not settings.no_enable_prefix_caching,
        num_tenants=max(1, len(settings.api_keys)),
        agent_store_attempt=launcher_attempt,
        step_log=None if settings.step_log is None else str(settings.step_log.expanduser().absolute()),
        lora={name: str(path.expanduser().absolute()) for name, path in settings.adapter_directories.items()},
        **common,
    )
