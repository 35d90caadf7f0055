"""Checkpoint folders with the real Mixtral tokenizers, which mistral-common ships."""

import json
import shutil
from pathlib import Path

import mistral_common

from server.tokenizer.tokenizer import Tokenizer, load_tokenizer

MISTRAL_FILES = Path(mistral_common.__file__).parent / "data"
V1 = MISTRAL_FILES / "tokenizer.model.v1"
V3 = MISTRAL_FILES / "mistral_instruct_tokenizer_240323.model.v3"
V7 = MISTRAL_FILES / "mistral_instruct_tokenizer_241114.model.v7"


def checkpoint(path: Path, model: Path = V1, name: str = "tokenizer.model", **json_files: object) -> Path:
    """Create the folder `path` with the tokenizer model and one file NAME.json per further argument."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, path / name)
    return write_json_files(path, **json_files)


def write_json_files(path: Path, **json_files: object) -> Path:
    """Write one file NAME.json per argument into the folder `path`; return the folder."""
    for stem, content in json_files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path


def v1_tokenizer(path: Path, **json_files: object) -> Tokenizer:
    return load_tokenizer(checkpoint(path / "v1", **json_files))


def v3_tokenizer(path: Path, **json_files: object) -> Tokenizer:
    return load_tokenizer(checkpoint(path / "v3", V3, "tokenizer.model.v3", **json_files))


def v7_tokenizer(path: Path, **json_files: object) -> Tokenizer:
    return load_tokenizer(checkpoint(path / "v7", V7, "tokenizer.model.v7", **json_files))
