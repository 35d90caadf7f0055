"""`smoe experts`, from its flags to its exit code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import uvloop

from engine.config import EngineConfig
from server.cli.errors import report_error
from server.cli.experts import measurement, report
from server.cli.experts.measurement import ExpertTextError
from server.cli.settings.loading import load_settings
from server.model_files.location import ModelNotFoundError, locate_model
from server.settings.engine_config import engine_config
from server.settings.sources import SettingsError, model_stores
from server.tokenizer.tokenizer import TokenizerError, load_tokenizer


def run(
    flags: Mapping[str, Any], paths: Sequence[Path], max_tokens: int, *, sweep: bool, as_json: bool, png: Path | None
) -> int:
    """Measure the texts, print the result and return the exit code: 0, or 2 for invalid arguments.

    `sweep`: measure quality and speed for each number of experts per token, instead of counting.
    """
    try:
        if png is not None:
            report.check_drawable(png)
        settings = load_settings(flags)
        model_dir = locate_model(settings.model, model_stores())
        texts = measurement.read_texts(paths, load_tokenizer(model_dir), max_tokens)
        config = engine_config(settings, model_dir)
        measure = _sweep_experts_per_token if sweep else _count
        output = measure(config, texts, as_json, png)
    except (SettingsError, ModelNotFoundError, TokenizerError, ExpertTextError) as error:
        return report_error(error)
    typer.echo(output)
    return 0


def _count(config: EngineConfig, texts: Sequence[measurement.Text], as_json: bool, png: Path | None) -> str:
    counts = uvloop.run(measurement.count(config, texts))
    if png is not None:
        report.draw_counts(counts, png)
    return report.count_json(counts) if as_json else report.count_table(counts)


def _sweep_experts_per_token(
    config: EngineConfig, texts: Sequence[measurement.Text], as_json: bool, png: Path | None
) -> str:
    points = uvloop.run(measurement.sweep_experts_per_token(config, texts))
    if png is not None:
        report.draw_sweep(points, png)
    return report.sweep_json(points) if as_json else report.sweep_table(points)
