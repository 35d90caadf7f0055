"""The `smoe` command. Each subcommand imports what it needs when it runs, so that --help takes 0.1 s."""

import sys

if sys.argv[1:2] == ["serve"]:  # before the imports that follow, which take a tenth of a second
    from server.lifecycle.restart.early_hangup import note_hangups

    note_hangups()
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from server.cli import client_commands, complete_command, completion
from server.cli.bench import commands as bench_commands
from server.cli.errors import EXIT_CODE, INTERRUPTED, report_error
from server.cli.explain import command as explain
from server.cli.plan import flags as flags_of_plan
from server.cli.run import command as run
from server.cli.settings.options import given_settings, settings_command
from server.cli.top import command as top
from server.cli.usage_errors import usage_line
from server.lifecycle.standard_streams import is_output_lost, open_closed_streams

# The order of the help: what a first day needs comes first.
HELP_ORDER = (
    *("run", "serve", "models", "plan", "doctor", "pack"),
    *("chat", "complete", "run-batch", "top", "health"),
    *("explain", "experts", "bench"),
)


class Commands(TyperGroup):
    """The commands of smoe in the order of HELP_ORDER."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=HELP_ORDER.index)


app = typer.Typer(
    name="smoe",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},  # of all subcommands too
)
app.add_typer(bench_commands.app)
run.add_to(app)
top.add_to(app)
explain.add_to(app)
client_commands.add_to(app)
complete_command.add_to(app)

USAGE_ERROR: Any = typer.BadParameter.__base__  # click's UsageError; typer exports only classes derived from it

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _show_version(is_given: bool) -> None:
    if is_given:
        import importlib.metadata

        typer.echo(importlib.metadata.version("smoe"))
        raise typer.Exit


@app.callback()
def smoe(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve Mixtral, Mistral's sparse mixture-of-experts model, over an OpenAI-style API.

    \b
    smoe run                                          # chat with the bundled demo model
    smoe serve                                        # serve it for other programs
    smoe serve /models/Mixtral-8x7B-Instruct-v0.1     # a directory in Hugging Face's layout
    smoe chat                                         # talk to the running server
    smoe top                                          # watch it
    smoe explain smoe-demo "It was"                   # which experts compute each token, and why
    smoe --install-completion bash                    # complete commands and flags in this shell
    """


@app.command("serve", cls=settings_command(), short_help="Serve a model over an OpenAI-style API.")
def serve_command(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of these settings.", metavar="FILE")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print each setting, its value and its source, and exit.")
    ] = False,
) -> None:
    """Serve MODEL, or the bundled demo model, over an OpenAI-style API.

    Flags override environment variables (--max-model-len is SMOE_MAX_MODEL_LEN), which override the file of --config.

    \b
    smoe serve /models/Mixtral-8x7B-Instruct-v0.1 --quantization int8 --port 9000
    """
    started_s = time.monotonic()
    from server.cli import serve

    flags = given_settings(context)
    raise typer.Exit(serve.print_config(flags, config) if print_config else serve.run(flags, config, started_s))


@app.command(
    "plan",
    cls=settings_command(
        "model",
        "rope_theta",
        "max_model_len",
        "dtype",
        "quantization",
        "expert_memory",
        "lora",
        "device",
        "tensor_parallel_size",
        "nnodes",
    ),
    short_help="Estimate memory use and suggest flags.",
)
def plan_command(
    context: typer.Context,
    memory: flags_of_plan.MemoryFlag = None,
    write_manifest: flags_of_plan.ManifestFlag = False,
    rate: flags_of_plan.RateFlag = None,
    steps: flags_of_plan.StepsFlag = None,
    trace: flags_of_plan.TraceFlag = None,
    hardware: flags_of_plan.HardwareFlag = None,
    network_gbit: flags_of_plan.NetworkFlag = 25.0,
    prompt_tokens: flags_of_plan.PromptTokensFlag = "512",
    output_tokens: flags_of_plan.OutputTokensFlag = "128",
    slo_ttft: flags_of_plan.FirstTokenFlag = 1.0,
    slo_gap: flags_of_plan.GapFlag = 0.1,
    as_json: JsonFlag = False,
) -> None:
    """Estimate memory use and suggest flags, without loading weights. With --rate: how many servers a load needs.

    Environment variables (SMOE_BLOCK_SIZE, SMOE_MAX_NUM_SEQS, ...) have the same effect as for serve. Sizes in --json
    are in bytes.

    \b
    smoe plan /models/Mixtral-8x7B-Instruct-v0.1 --memory 80GiB --quantization int4
    """
    from server.cli.plan import capacity
    from server.cli.plan import memory as memory_plan

    if any(option is not None for option in (rate, trace, steps, hardware)):
        if write_manifest:
            raise typer.Exit(report_error(ValueError("--write-manifest: not with the flags of a load, such as --rate")))
        load = capacity.Load(
            rate, trace, steps, hardware, network_gbit, prompt_tokens, output_tokens, slo_ttft, slo_gap
        )
        raise typer.Exit(capacity.run(given_settings(context), memory, load, as_json=as_json))

    raise typer.Exit(memory_plan.run(given_settings(context), memory, as_json=as_json, write_manifest=write_manifest))


@app.command("models", cls=settings_command("device"), short_help="List the models on this machine, and which fit.")
def models_command(
    context: typer.Context,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory to plan for, such as 80GiB; for a GPU, its memory, with --device cuda. [default: main memory "
            "available here]",
            metavar="SIZE",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the models on this machine that other programs downloaded, and which of them fit.

    It looks in the cache of Hugging Face (HF_HUB_CACHE, HF_HOME), in LM Studio's folder, and in Ollama's
    (OLLAMA_MODELS). Serve one by the name that is listed.

    \b
    smoe models --memory 80GiB --device cuda
    """
    from server.cli import models

    raise typer.Exit(models.run(given_settings(context), memory, as_json=as_json))


@app.command(
    "pack",
    cls=settings_command("model", "rope_theta", "dtype", "quantization", "threads", "verify"),
    short_help="Write weights as the CPU kernels read them.",
)
def pack_command(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make, with the pack in it.", metavar="DIR")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="MODEL is a pack: compare its checksums with its contents, and exit.")
    ] = False,
) -> None:
    """Write MODEL's weights as the CPU kernels read them, so that `smoe serve DIR` starts without loading them.

    Servers of one pack share its memory. A pack needs as much disk as the model needs memory.

    \b
    smoe pack /models/Mixtral-8x7B-Instruct-v0.1 --quantization int8 -o /models/mixtral-int8
    smoe pack --check /models/mixtral-int8
    """
    from server.cli import pack

    raise typer.Exit(pack.run(given_settings(context), output, check=check))


@app.command(
    "experts",
    cls=settings_command("model", "rope_theta"),
    short_help="Measure which experts take which texts.",
)
def experts_command(
    context: typer.Context,
    text: Annotated[list[Path], typer.Option(help="Text file of one kind. May be repeated.", metavar="FILE")] = [],  # noqa: B006 (typer's way)
    max_tokens: Annotated[
        int, typer.Option("--tokens", min=2, help="Maximum number of tokens to read from each text.")
    ] = 20_000,
    sweep: Annotated[
        bool, typer.Option("--dial", help="Measure quality and speed with 1 expert per token, 2, ... up to all.")
    ] = False,
    as_json: JsonFlag = False,
    png: Annotated[
        Path | None, typer.Option(help="Also draw the result into this file. Needs matplotlib.", metavar="FILE.png")
    ] = None,
) -> None:
    """Measure which experts of MODEL process which kind of text.

    Environment variables (SMOE_DTYPE, SMOE_EXPERTS_PER_TOKEN, ...) have the same effect as for serve.

    \b
    smoe experts /models/Mixtral-8x7B-Instruct-v0.1 --text prose.txt --text code.py
    """
    from server.cli.experts import command

    if not text:
        raise typer.Exit(report_error(ValueError("give at least one --text FILE")))
    flags = given_settings(context)
    raise typer.Exit(command.run(flags, text, max_tokens, sweep=sweep, as_json=as_json, png=png))


def main() -> None:
    """Run the `smoe` command. An invalid command line prints one line and exits with 2."""
    open_closed_streams()
    try:
        code = completion.run(sys.argv[1:])
        code = app(prog_name="smoe", standalone_mode=False) if code is None else code
    except USAGE_ERROR as error:
        typer.echo(usage_line(error, sys.argv[1:], typer.main.get_command(app)), err=True)
        code = 2
    except typer.Abort:
        code = INTERRUPTED
    except OSError:
        if not is_output_lost(after_error=True):
            raise
        code = EXIT_CODE
    sys.exit(EXIT_CODE if not code and is_output_lost() else code)
