"""The command line. Imports what a command needs when it runs, so that --help answers at once."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from server.bench.commands import app as bench_app
from server.cli.client_commands import add_to

app = typer.Typer(
    name="smoe",
    help="An OpenAI-style server for Mixtral, Mistral's sparse mixture-of-experts model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.add_typer(bench_app)
add_to(app)

USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, of which typer carries a copy

Text = str | None
Several = list[str] | None
Switch = bool | None


def _option(help_text: str, metavar: str = "TEXT") -> Any:
    """A flag whose value server/settings.py checks, so that flags, variables and files get the same answer."""
    return typer.Option(help=help_text, metavar=metavar, show_default=False)


def _switch(help_text: str, name: str) -> Any:
    return typer.Option(f"--{name}", help=help_text, show_default=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(importlib.metadata.version("smoe"))
        raise typer.Exit


@app.callback()
def smoe(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version.")] = False,
) -> None:
    """An OpenAI-style server for Mixtral, Mistral's sparse mixture-of-experts model."""


@app.command("serve")
def serve_command(
    model: Annotated[Text, typer.Argument(help="Directory, or org/name in the local Hugging Face cache.")] = None,
    host: Annotated[Text, _option("Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[Text, _option("Port; 0 takes a free one. [8000]", "N")] = None,
    api_key: Annotated[Several, _option("Key that clients must send. May be repeated.")] = None,
    served_model_name: Annotated[Several, _option("Name(s) that clients use; the first is the id.")] = None,
    max_model_len: Annotated[Text, _option("Longest prompt plus completion, in tokens.", "N")] = None,
    max_num_seqs: Annotated[Text, _option("Most requests in one step. [256]", "N")] = None,
    max_num_batched_tokens: Annotated[Text, _option("Most tokens in one step.", "N")] = None,
    max_num_queued_reqs: Annotated[Text, _option("Most requests waiting before 429. [1024]", "N")] = None,
    max_num_queued_tokens: Annotated[Text, _option("Most prompt tokens waiting before 429. [1024 each]", "N")] = None,
    block_size: Annotated[Text, _option("Tokens per KV block. [16]", "N")] = None,
    kv_cache_memory_bytes: Annotated[Text, _option("Memory for the KV cache: bytes, or 1GiB.", "SIZE")] = None,
    kv_cache_dtype: Annotated[Text, _option("auto (as the weights) or int8. [auto]")] = None,
    num_kv_blocks: Annotated[Text, _option("Blocks in the KV cache, instead of a size.", "N")] = None,
    no_enable_prefix_caching: Annotated[Switch, _switch("Never share prefixes.", "no-enable-prefix-caching")] = None,
    scheduling_policy: Annotated[Text, _option("priority (lower first, then arrival) or fcfs. [priority]")] = None,
    async_scheduling: Annotated[
        Switch, _switch("Plan a step while the one before is computed. [on a GPU]", "async-scheduling")
    ] = None,
    seed: Annotated[Text, _option("Makes the seeds of requests that bring none repeatable.", "N")] = None,
    sliding_window: Annotated[Text, _option("none, or N tokens; instead of the checkpoint's own.", "none|N")] = None,
    experts_per_token: Annotated[Text, _option("Of requests that name no number; else the checkpoint's.", "N")] = None,
    dtype: Annotated[Text, _option("auto (the checkpoint's), float32 or bfloat16. [auto]")] = None,
    quantization: Annotated[Text, _option("none, int8, int4 (CPU) or fp8 (GPU): the weights. [none]")] = None,
    verify: Annotated[
        Switch, _switch("Check the files against their SHA256SUMS, and every weight, before serving.", "verify")
    ] = None,
    device: Annotated[Text, _option("auto, cpu or cuda. [auto]")] = None,
    backend: Annotated[Text, _option("auto, native (CPU), triton (GPU) or reference (torch). [auto]")] = None,
    deterministic: Annotated[Switch, _switch("GPU: the same bits in any batch.", "deterministic")] = None,
    isa: Annotated[Text, _option("portable, avx2, avx512, avx512bf16 or amx, for the native backend. [auto]")] = None,
    threads: Annotated[Text, _option("CPU threads; default one per core.", "N")] = None,
    chat_template: Annotated[Text, _option("Jinja file to use instead of the checkpoint's.", "FILE")] = None,
    generation_config: Annotated[Text, _option("auto, or none to ignore the checkpoint's defaults. [auto]")] = None,
    strict_params: Annotated[Switch, _switch("Refuse what would be ignored.", "strict-params")] = None,
    strict_roles: Annotated[Switch, _switch("Refuse conversations whose roles need repair.", "strict-roles")] = None,
    tool_emulation: Annotated[
        Switch, _switch("Let a model that was taught no tools call some.", "tool-emulation")
    ] = None,
    shutdown_timeout: Annotated[Text, _option("Time for running requests at SIGTERM. [60]", "SECONDS")] = None,
    max_body_bytes: Annotated[Text, _option("Longest request body. [1MiB]", "SIZE")] = None,
    allowed_origins: Annotated[Several, _option("Origin that browsers may call from. May be repeated.")] = None,
    root_path: Annotated[Text, _option("Path prefix that a proxy adds.")] = None,
    ssl_keyfile: Annotated[Text, _option("TLS key.", "FILE")] = None,
    ssl_certfile: Annotated[Text, _option("TLS certificate.", "FILE")] = None,
    metrics_compat: Annotated[Text, _option("vllm adds vLLM's metric names; or none. [vllm]")] = None,
    metrics_auth: Annotated[Switch, _switch("/metrics needs a key too.", "metrics-auth")] = None,
    log_level: Annotated[Text, _option("debug, info, warning or error. [info]")] = None,
    log_format: Annotated[Text, _option("text or json. [text]")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of these settings.", metavar="FILE")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Say what each setting is and where it comes from, and exit.")
    ] = False,
) -> None:
    """Serve MODEL, or the bundled demo, over an OpenAI-style API.

    Each flag is also an environment variable: --max-model-len is SMOE_MAX_MODEL_LEN.
    """
    started_s = time.monotonic()
    given = {name: value for name, value in locals().items() if name not in ("config", "print_config", "started_s")}
    flags = {name: value for name, value in given.items() if value not in (None, [])}
    raise typer.Exit(_print_config(flags, config) if print_config else _serve(flags, config, started_s))


def _print_config(flags: dict[str, Any], config: Path | None) -> int:
    from server.settings import SettingsError, load_settings, origins, shown

    try:
        settings = load_settings(flags, config)
    except SettingsError as error:
        return _refused(error)
    for name, origin in origins(flags, config).items():
        typer.echo(f"{name.replace('_', '-'):<26} {shown(settings, name):<24} {origin}")
    return 0


def _serve(flags: dict[str, Any], config: Path | None, started_s: float) -> int:
    from server.settings import SettingsError, load_settings

    try:
        settings = load_settings(flags, config)
    except SettingsError as error:
        return _refused(error)
    from server.lifecycle.serve import serve
    from server.lifecycle.text_frontend import StartError

    try:
        return serve(settings, started_s)
    except StartError as error:
        return _refused(error)


@app.command("plan")
def plan_command(
    model: Annotated[Text, typer.Argument(help="Directory, or org/name in the local Hugging Face cache.")] = None,
    memory: Annotated[Text, _option("Memory to plan for, as 80GiB. [what is available here]", "SIZE")] = None,
    max_model_len: Annotated[Text, _option("Longest prompt plus completion, in tokens.", "N")] = None,
    dtype: Annotated[Text, _option("auto (the checkpoint's), float32 or bfloat16. [auto]")] = None,
    quantization: Annotated[Text, _option("none, int8, int4 (CPU) or fp8 (GPU): the weights. [none]")] = None,
    write_manifest: Annotated[
        bool, typer.Option("--write-manifest", help="Write SHA256SUMS beside the files, for serve --verify.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, sizes in bytes.")] = False,
) -> None:
    """Say what MODEL takes, and what of it fits into the memory, from its headers alone.

    SMOE_* variables count as they do for serve: SMOE_BLOCK_SIZE, SMOE_MAX_NUM_SEQS.
    """
    given = {"model": model, "max_model_len": max_model_len, "dtype": dtype, "quantization": quantization}
    flags = {name: value for name, value in given.items() if value is not None}
    raise typer.Exit(_plan(flags, memory, as_json=as_json, write_manifest=write_manifest))


def _plan(flags: dict[str, Any], memory: str | None, *, as_json: bool, write_manifest: bool) -> int:
    from server.cli import plan
    from server.settings import SettingsError, load_settings, size_flag

    try:
        settings = load_settings(flags)
        answer = plan.answer(settings, None if memory is None else size_flag("--memory", memory))
        if write_manifest:
            typer.echo(plan.write_manifest(settings), err=True)
    except (SettingsError, plan.PlanError) as error:
        return _refused(error)
    typer.echo(plan.as_json(answer) if as_json else plan.as_table(answer))
    return 0


@app.command("experts")
def experts_command(
    model: Annotated[Text, typer.Argument(help="Directory, or org/name in the local Hugging Face cache.")] = None,
    text: Annotated[list[Path], typer.Option(help="A text of one kind. May be repeated.", metavar="FILE")] = [],  # noqa: B006 (typer's way)
    max_tokens: Annotated[int, typer.Option("--tokens", min=2, help="Of each text, at most.")] = 20_000,
    dial: Annotated[
        bool, typer.Option("--dial", help="Quality and speed with 1 expert per token up to all of them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw it as well: needs matplotlib.", metavar="FILE.png")] = None,
) -> None:
    """Say which of MODEL's experts take which kind of text.

    SMOE_* variables count as they do for serve: SMOE_DTYPE, SMOE_EXPERTS_PER_TOKEN.
    """
    from server.cli import experts as experts_command

    if not text:
        raise typer.Exit(_refused(ValueError("give at least one --text FILE")))
    flags = {} if model is None else {"model": model}
    raise typer.Exit(experts_command.run(flags, text, max_tokens, dial=dial, as_json=as_json, png=png))


def _refused(error: Exception) -> int:
    typer.echo(f"smoe: {error}", err=True)
    return 2


def main() -> None:
    """Entry point of the `smoe` command. A flag that is none gets one line, as a value that is none does."""
    try:
        code = app(prog_name="smoe", standalone_mode=False)
    except USAGE_ERROR as error:
        message = error.format_message()
        typer.echo(message if "\n" in message else f"smoe: {message} (see smoe --help)", err=True)
        code = 2
    except typer.Abort:
        code = 130  # Ctrl-C
    sys.exit(code)
