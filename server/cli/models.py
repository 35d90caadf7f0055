"""`smoe models`: models on this machine, by the names that `smoe serve` accepts, and which of them fit."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import typer

from engine.capacity.machine.host_resources import available_bytes, format_bytes
from server.cli.errors import report_error
from server.cli.plan.memory import PlanError, PlanReport, make_report
from server.cli.terminal_text import escape_controls
from server.model_files.stores import FoundModel, ModelStores, found_models
from server.settings.sources import SettingsError, load_settings, model_stores, parse_size_flag

HAS_ADAPTER = "has an adapter in Ollama's format, which is not read"  # as `smoe serve` refuses such a model


@dataclass(frozen=True)
class ListedModel:
    """A model on disk, and whether it can be served here."""

    name: str
    store: str
    path: str
    stored_bytes: int | None  # weights on disk; None if the model is not served
    fits_as: str | None  # format in which the weights fit, the largest first; None: they do not fit
    verdict: str


def run(flags: Mapping[str, Any], memory: str | None, *, as_json: bool) -> int:
    """Print the models and return the exit code: 0, or 2 for invalid settings. `memory`: text of --memory."""
    try:
        load_settings(flags)
        memory_bytes = available_bytes() if memory is None else parse_size_flag("--memory", memory)
    except SettingsError as error:
        return report_error(error)
    models = list(listed_models(model_stores(), flags, memory_bytes))
    typer.echo(to_json(models, memory_bytes) if as_json else to_table(models, memory_bytes))
    return 0


def listed_models(stores: ModelStores, flags: Mapping[str, Any], memory_bytes: int) -> Iterator[ListedModel]:
    """Plan each model of the stores from its headers alone."""
    for found in found_models(stores):
        yield _listed(found, flags, memory_bytes)


def _listed(found: FoundModel, flags: Mapping[str, Any], memory_bytes: int) -> ListedModel:
    if found.has_adapter:
        return _not_served(found, HAS_ADAPTER)
    try:
        report = make_report(load_settings({**flags, "model": str(found.path)}), memory_bytes)
    except (PlanError, SettingsError) as error:
        reason = str(error).replace(f"{found.path}: ", "").replace(f"{found.path}/", "")
        return _not_served(found, reason)
    kind = report.fitting.weight_kind if report.fitting else None
    return ListedModel(found.name, found.store, str(found.path), report.plan.stored_bytes, kind, _verdict(report))


def _not_served(found: FoundModel, reason: str) -> ListedModel:
    return ListedModel(found.name, found.store, str(found.path), None, None, f"not served: {reason}")


def _verdict(report: PlanReport) -> str:
    """Return in a few words how the model fits: as it is, with a flag, or not at all."""
    plan, fitting = report.plan, report.fitting
    if fitting is None:
        return "does not fit"
    if fitting is plan:
        return f"fits in {plan.weight_kind}"
    if fitting.config.quantization != "none":
        return f"fits with --quantization {fitting.config.quantization}"
    return f"fits with --dtype {fitting.dtype}"


def to_json(models: Iterable[ListedModel], memory_bytes: int) -> str:
    """Return one JSON object, sizes in bytes."""
    return json.dumps({"memory_bytes": memory_bytes, "models": [asdict(model) for model in models]}, indent=2)


def to_table(models: list[ListedModel], memory_bytes: int) -> str:
    """Return a line per model: name, size on disk, store, verdict."""
    if not models:
        return (
            "no models in the caches of Hugging Face, LM Studio and Ollama; a file or directory is served by its path"
        )
    rows = [
        (escape_controls(model.name), _size(model), model.store, escape_controls(model.verdict)) for model in models
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {size:>{widths[1]}}  {store:<{widths[2]}}  {verdict}"
        for name, size, store, verdict in rows
    ]
    return "\n".join([*lines, f"memory: {format_bytes(memory_bytes)}; serve one with: smoe serve NAME"])


def _size(model: ListedModel) -> str:
    return "-" if model.stored_bytes is None else format_bytes(model.stored_bytes)
