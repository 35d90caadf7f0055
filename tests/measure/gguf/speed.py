"""Compare the speed of GGUF files here and in llama.cpp, for one request: prefill of 512 tokens, decode of 64.

    python -m tests.measure.gguf.speed --llama BIN [--threads N] [--isa NAME] [--rounds N] FILE.gguf ...

BIN is the folder of llama-bench. Each round runs both programs on each file, one after the other; a figure is the best
of its rounds, because other work on the machine only ever slows a program down. "of the limit" is the share of the
memory's or the arithmetic's limit that `smoe bench engine` measures beside its figure.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFILL_LEN, DECODE_LEN = 512, 64
BATCH = 16  # for the decode of several requests, which llama-bench does not measure


@dataclass
class Best:
    """Best figures of the rounds so far, in tokens per second."""

    prefill: float = 0.0
    decode: float = 0.0
    batch: float = 0.0
    decode_share: float = 0.0

    def merge(self, other: "Best") -> None:
        """Keep the better of each figure."""
        for name, value in vars(other).items():
            setattr(self, name, max(getattr(self, name), value))


def run_llama_bench(folder: Path, file: Path, threads: int) -> Best:
    """Run llama-bench once."""
    command = [folder / "llama-bench", "-m", file, "-t", str(threads), "-p", str(PREFILL_LEN), "-n", str(DECODE_LEN)]
    results = _json_of([*command, "-r", "2", "-o", "json"])
    return Best(
        prefill=max(max(result["samples_ts"]) for result in results if result["n_prompt"]),
        decode=max(max(result["samples_ts"]) for result in results if result["n_gen"]),
    )


def run_smoe_bench(file: Path, threads: int, isa: str) -> Best:
    """Run `smoe bench engine` once."""
    command = [sys.executable, "-m", "server", "bench", "engine", file, "--json"]
    command += ["--threads", str(threads), "--isa", isa]
    sizes = ["--prefills", str(PREFILL_LEN), "--batches", f"1,{BATCH}", "--contexts", str(DECODE_LEN)]
    best = Best()
    for step in _json_of([*command, *sizes])["steps"]:
        if step["kind"] == "prefill":
            best.merge(Best(prefill=step["tokens_per_s"]))
        elif step["batch"] == 1:
            best.merge(Best(decode=step["tokens_per_s"], decode_share=step["share"]))
        else:
            best.merge(Best(batch=step["tokens_per_s"]))
    return best


def _json_of(command: list[Any]) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} exits with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def row(file: Path, ours: Best, theirs: Best) -> str:
    """Format a file's figures as a row of the table."""
    cells = [
        file.stem,
        f"{ours.prefill:.0f}",
        f"{theirs.prefill:.0f}",
        f"{ours.prefill / theirs.prefill:.2f}",
        f"{ours.decode:.0f}",
        f"{theirs.decode:.0f}",
        f"{ours.decode / theirs.decode:.2f}",
        f"{ours.decode_share:.0%}",
        f"{ours.batch:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--llama", type=Path, required=True, metavar="BIN")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--isa", default="auto", help="instruction set here; llama.cpp must be built for the same")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ours, theirs = ({file: Best() for file in arguments.files} for _ in range(2))
    for _ in range(arguments.rounds):
        for file in arguments.files:
            theirs[file].merge(run_llama_bench(arguments.llama, file, arguments.threads))
            ours[file].merge(run_smoe_bench(file, arguments.threads, arguments.isa))
    header = ["file", f"prefill {PREFILL_LEN}", "llama-bench", "ratio", "decode", "llama-bench", "ratio"]
    header += ["of the limit", f"{BATCH} rows"]
    lines = [f"{arguments.threads} threads, best of {arguments.rounds} rounds, tokens per second"]
    lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [row(file, ours[file], theirs[file]) for file in arguments.files]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
