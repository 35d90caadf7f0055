"""Quantize the padded bundled model with llama.cpp's programs.

    python -m tests.measure.gguf.quantized_demo --llama BIN FOLDER TYPE ...

BIN is the folder of llama-quantize and llama-imatrix, TYPE a file type of llama-quantize: Q4_K_M, IQ3_S, IQ2_M. IQ2
and IQ3 get an importance matrix, as published files do and llama-quantize demands of most. It is from Python files that
the bundled model was trained on: those that it was not trained on stay for the comparison.
"""

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

from model.demo.training.corpus import load_python
from tests.measure.gguf.demo_file import write_demo

CONTEXT_LEN = 256
NUM_CHUNKS = 200  # of text for the importance matrix
CHARACTERS_PER_CHUNK = 6 * CONTEXT_LEN
WITH_IMPORTANCE = ("IQ2", "IQ3")


def write_quantized(llama: Path, folder: Path, types: Sequence[str]) -> list[Path]:
    """Write a file per type into the folder, beside what they are made from; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "demo-f32.gguf"
    write_demo(source)
    importance = _write_importance(llama, source) if any(map(_takes_importance, types)) else ""
    files = []
    for name in types:
        files.append(folder / f"{name}.gguf")
        options = ["--imatrix", importance] if _takes_importance(name) else []
        _run(llama / "llama-quantize", *options, source, files[-1], name, "1")
    return files


def _takes_importance(name: str) -> bool:
    return name.startswith(WITH_IMPORTANCE)


def _write_importance(llama: Path, source: Path) -> Path:
    """Write the mean squares of the activations that each matrix multiplies."""
    text, matrix = source.with_name("calibration.txt"), source.with_name("imatrix.gguf")
    text.write_text("\n".join(load_python().train)[: NUM_CHUNKS * CHARACTERS_PER_CHUNK])
    sizes = ["-c", str(CONTEXT_LEN), "--chunks", str(NUM_CHUNKS), "-t", "1"]
    _run(llama / "llama-imatrix", "-m", source, "-f", text, "-o", matrix, *sizes)
    return matrix


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("types", nargs="+", metavar="TYPE")
    parser.add_argument("--llama", type=Path, required=True, metavar="BIN")
    arguments = parser.parse_args()
    write_quantized(arguments.llama, arguments.folder, arguments.types)


if __name__ == "__main__":
    main()
