"""Find models in the folders where other programs keep them: Hugging Face's cache, LM Studio, Ollama.

Nothing is ever downloaded. A model that is found has the name under which `smoe serve` accepts it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_MANIFEST_BYTES = 1 << 20
OLLAMA_REGISTRY = "registry.ollama.ai"
OLLAMA_WEIGHTS, OLLAMA_ADAPTER = "application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"
LATER_PART = re.compile(r"-(?!00001-of-)\d{5}-of-\d{5}\.gguf$")
FIRST_PART = re.compile(r"-00001-of-\d{5}$")
CONFIGS = ("config.json", "params.json")


@dataclass(frozen=True)
class ModelStores:
    """Folders of models on this machine; they need not exist."""

    hub_cache: Path
    lm_studio: tuple[Path, ...] = ()
    ollama: Path | None = None


@dataclass(frozen=True)
class FoundModel:
    """A model on disk: a directory, or a GGUF file (the first one of several parts)."""

    name: str  # org/name, org/name:TAG, or a name of Ollama
    path: Path
    store: str
    has_adapter: bool = False  # of Ollama's, which is not read: the model is not what `path` has


def found_models(stores: ModelStores) -> Iterator[FoundModel]:
    """Yield the models of all stores. Unreadable folders and files count as absent."""
    yield from _hub_models(stores.hub_cache)
    for folder in stores.lm_studio:
        yield from _lm_studio_models(folder)
    if stores.ollama is not None:
        yield from _ollama_models(stores.ollama / "manifests", stores.ollama / "blobs")


def _hub_models(cache: Path) -> Iterator[FoundModel]:
    """Yield the snapshots that refs/main points to, in the layout of `hf download`."""
    for folder in _entries(cache, "models--*--*"):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = hub_snapshot(cache, name)
        if snapshot is not None:
            yield from _models_of_folder(name, snapshot, "Hugging Face")


def hub_snapshot(cache: Path, name: str) -> Path | None:
    """Return the snapshot of org/name that refs/main points to; None if there is none."""
    folder = cache / f"models--{name.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text().strip()
        snapshot = folder / "snapshots" / revision
        return snapshot if revision and snapshot.is_dir() else None
    except (OSError, ValueError):
        return None


def _lm_studio_models(folder: Path) -> Iterator[FoundModel]:
    for path in _entries(folder, "*/*"):
        if path.is_dir():
            yield from _models_of_folder(f"{path.parent.name}/{path.name}", path, "LM Studio")


def _models_of_folder(name: str, folder: Path, store: str) -> Iterator[FoundModel]:
    """Yield a folder with a config as one model, and each of its GGUF files with its tag."""
    if is_checkpoint(folder):
        yield FoundModel(name, folder, store)
    files = gguf_files(folder)
    tags = [tag_of(file) for file in files]
    for file, tag in zip(files, tags, strict=True):
        yield FoundModel(f"{name}:{tag if tags.count(tag) == 1 else file.stem}", file, store)


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint: it has a config, which is not only that of GGUF files beside it."""
    has_config = any((folder / config).exists() for config in CONFIGS)
    return has_config and (bool(_entries(folder, "*.safetensors")) or not gguf_files(folder))


def gguf_files(folder: Path) -> list[Path]:
    """Return the GGUF files in a folder and its subfolders, of split ones the first part, without those of packs."""
    from engine.capacity.packs import is_vocabulary_of_pack  # here, since every command imports this module

    found = [*_entries(folder, "*.gguf"), *_entries(folder, "*/*.gguf")]
    return [file for file in found if not LATER_PART.search(file.name) and not is_vocabulary_of_pack(file)]


def tag_of(file: Path) -> str:
    """Return the end of a GGUF file's name that tells its type, or else the whole stem.

    mixtral-8x7b-instruct-v0.1.Q4_K_M.gguf: Q4_K_M. A first part is named without its number.
    """
    stem = FIRST_PART.sub("", file.stem)
    match = re.search(r"[-._]((?:UD-)?I?Q\d\w*|T?Q\d\w*|BF16|F16|F32|MXFP4\w*)$", stem, re.IGNORECASE)
    return match[1] if match else stem


def _ollama_models(manifests: Path, blobs: Path) -> Iterator[FoundModel]:
    """Yield the models of Ollama's manifests, which lie in REGISTRY/NAMESPACE/NAME/TAG."""
    for manifest in sorted(_entries(manifests, "*/*/*/*")):
        registry, namespace, name, tag = manifest.relative_to(manifests).parts
        digests = _ollama_layers(manifest)
        path = _ollama_weights(digests, blobs)
        if path is not None:
            parts = [*([] if registry == OLLAMA_REGISTRY else [registry]), namespace, name]
            short = parts[1:] if parts[0] == "library" else parts
            yield FoundModel(f"{'/'.join(short)}:{tag}", path, "Ollama", has_adapter=OLLAMA_ADAPTER in digests)


def _ollama_layers(manifest: Path) -> dict[str, list[str]]:
    """Return the digests of a manifest's layers by their media type; none if it cannot be read."""
    digests: dict[str, list[str]] = {}
    try:
        with manifest.open("rb") as stream:
            for layer in json.loads(stream.read(MAX_MANIFEST_BYTES))["layers"]:
                digests.setdefault(str(layer["mediaType"]), []).append(str(layer["digest"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return digests


def _ollama_weights(digests: Mapping[str, list[str]], blobs: Path) -> Path | None:
    """Return the file with the weights, which is a GGUF file; None if the manifest names none that exists."""
    named = [digest for digest in digests.get(OLLAMA_WEIGHTS, []) if re.fullmatch("sha256:[0-9a-f]{64}", digest)]
    paths = [blobs / digest.replace(":", "-") for digest in named]
    return paths[0] if len(paths) == 1 and paths[0].is_file() else None


def with_tag(models: Iterable[FoundModel], name: str, tag: str) -> list[FoundModel]:
    """Return the models called `name`:`tag`, ignoring case; without an exact match, those whose tag contains `tag`."""
    listed = [model for model in models if model.name.rpartition(":")[0].lower() == name.lower()]
    exact = [model for model in listed if model.name.rpartition(":")[2].lower() == tag.lower()]
    return exact or [model for model in listed if tag.lower() in model.name.rpartition(":")[2].lower()]


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
