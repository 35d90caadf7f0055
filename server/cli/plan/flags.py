"""Flags of `smoe plan`."""

from pathlib import Path
from typing import Annotated

import typer

MemoryFlag = Annotated[
    str | None,
    typer.Option(
        help="Memory to plan for, such as 80GiB; for a GPU, its memory, with --device cuda; with --nnodes, of each "
        "host. [default: main memory available here, or of --hardware]",
        metavar="SIZE",
    ),
]
ManifestFlag = Annotated[
    bool, typer.Option("--write-manifest", help="Write SHA256SUMS next to the files, for `smoe serve --verify`.")
]
RateFlag = Annotated[
    float | None,
    typer.Option(help="Requests per second: say how many servers they need. Needs --steps or --hardware.", metavar="R"),
]
StepsFlag = Annotated[
    Path | None,
    typer.Option(
        help="Measured times of steps: the output of `smoe bench steps --json`, or of `smoe bench engine --json`.",
        metavar="FILE",
    ),
]
TraceFlag = Annotated[
    Path | None,
    typer.Option(
        help="Requests of a trace instead of drawn ones, as in `smoe bench serve`; with --rate faster or slower.",
        metavar="FILE",
    ),
]
HardwareFlag = Annotated[
    str | None,
    typer.Option(
        help="With --rate, instead of --steps: predict steps from the data sheet of a100, h100, h200, epyc-9654, "
        "xeon-8480, 2x-epyc-9654 or 2x-xeon-8480.",
        metavar="NAME",
    ),
]
NetworkFlag = Annotated[
    float, typer.Option(help="With --hardware and --nnodes: Gbit/s that a host receives.", metavar="R")
]
PromptTokensFlag = Annotated[
    str, typer.Option(help="With --rate: prompt length, as 800, or a range, as 16,256.", metavar="N")
]
OutputTokensFlag = Annotated[
    str, typer.Option(help="With --rate: tokens to generate, as 200, or a range, as 16,256.", metavar="N")
]
FirstTokenFlag = Annotated[float, typer.Option(help="With --rate: seconds to the first token, for 99 %.", metavar="S")]
GapFlag = Annotated[float, typer.Option(help="With --rate: seconds between two tokens, for 99 %.", metavar="S")]
