"""Resolve a model's name to the path of its checkpoint. Nothing is ever downloaded."""

import re
from pathlib import Path

import model
from server.model_files.stores import (
    CONFIGS,
    FoundModel,
    ModelStores,
    found_models,
    gguf_files,
    hub_snapshot,
    is_checkpoint,
    with_tag,
)

DEMO_NAME = "smoe-demo"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
MISSPELLED = re.compile(r"(?:https?://[^/]+/([\w.-]+/[\w.-]+)(?:/.*)?|([\w.-]+/[\w.-]+)/+)")  # an address, or org/name/
TAGGED = re.compile(r"((?:[\w.-]+/)*[\w.-]+):([\w.-]+)")  # org/name:Q4_K_M, mixtral:8x7b
DEFAULT_TAG = "latest"  # Ollama's
MAX_LISTED = 4
LIST_MODELS = "`smoe models` lists what is on this machine"


class ModelNotFoundError(Exception):
    """Missing model. The message is one line with the name and the way to get the model."""


def locate_model(name: str | None, stores: ModelStores) -> Path:
    """Return the absolute path of a checkpoint: a directory, or a GGUF file.

    `name`: None or its name for the demo, a path, org/name of a model in the Hugging Face cache, or another name in
    `stores`: org/name:Q4_K_M, mixtral:8x7b. Raises ModelNotFoundError.
    """
    if name is None:
        return _demo_dir()
    try:
        path = _existing(Path(name).expanduser())
    except (OSError, RuntimeError) as error:  # below a directory that may not be searched, or in the home of nobody
        reason = getattr(error, "strerror", None) or "no such user"
        raise ModelNotFoundError(f"{name}: {reason}; {LIST_MODELS}") from None
    if path is not None:
        return path
    if name == DEMO_NAME:
        return _demo_dir()
    if name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"{name}: no such file or directory; {LIST_MODELS}")
    if misspelled := MISSPELLED.fullmatch(name):
        repository = misspelled[1] or misspelled[2]
        raise ModelNotFoundError(f"{name}: no such directory; for a model in Hugging Face's cache write {repository}")
    tagged = TAGGED.fullmatch(name)
    if tagged:
        return _tagged(name, tagged[1], tagged[2], stores)
    if REPOSITORY.fullmatch(name):
        return _repository(name, stores)
    in_ollama = with_tag(found_models(stores), name, DEFAULT_TAG)
    if len(in_ollama) == 1:
        return _path_of(in_ollama[0])
    raise ModelNotFoundError(f"{name}: no such file or directory; {LIST_MODELS}")


def described(path: Path) -> str:
    """Return a located model's path, with the word for a GGUF file."""
    return f"GGUF file {path}" if path.is_file() else str(path)


def model_id(name: str | None) -> str:
    """Return the default model name for clients: of a path its last part, without .gguf; never the path, unless it
    leads nowhere."""
    if name is None:
        return DEMO_NAME
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path.name.removesuffix(".gguf")
        return path.resolve().name if path.is_dir() else name
    except (OSError, RuntimeError):  # below a directory that may not be searched, or in the home of nobody
        return name


def _demo_dir() -> Path:
    (package_dir,) = model.__path__
    return Path(package_dir).resolve() / "demo"


def _existing(path: Path) -> Path | None:
    """Return the checkpoint at a path, None if nothing is there. Raises ModelNotFoundError, OSError."""
    if path.is_dir():
        return _checkpoint_in(path)
    # Not resolved: the parts of a model are found by name, and a link may have another.
    return path.absolute() if path.is_file() else None


def _checkpoint_in(folder: Path) -> Path:
    """Return the folder if it is a checkpoint, else its only GGUF file. Raises ModelNotFoundError."""
    if is_checkpoint(folder):
        return folder.resolve()
    files = gguf_files(folder)
    if len(files) > 1:
        raise ModelNotFoundError(f"{folder}: has {len(files)} GGUF files; name one, such as {files[0]}")
    if not files:
        raise ModelNotFoundError(f"{folder}: has no model: neither {' nor '.join(CONFIGS)}, and no .gguf file")
    return files[0].absolute()


def _repository(name: str, stores: ModelStores) -> Path:
    """Return the folder of org/name, or its only GGUF file."""
    snapshot = hub_snapshot(stores.hub_cache, name)
    if snapshot is not None and is_checkpoint(snapshot):
        return snapshot.resolve()
    files = [found for found in found_models(stores) if found.name.rpartition(":")[0] == name]
    if files:
        return _only(name, files)
    if snapshot is not None:
        return _checkpoint_in(snapshot)
    where = "no such directory, and not" if Path(name).parent.is_dir() else "not"
    raise ModelNotFoundError(f"{name}: {where} in {stores.hub_cache}; download it with: hf download {name}")


def _tagged(name: str, model_name: str, tag: str, stores: ModelStores) -> Path:
    found = with_tag(found_models(stores), model_name, tag)
    if found:
        return _only(name, found)
    if REPOSITORY.fullmatch(model_name):
        way = f"download it with: hf download {model_name} --include '*{tag}*'"
    else:
        way = LIST_MODELS
    raise ModelNotFoundError(f"{name}: not on this machine; {way}")


def _only(name: str, found: list[FoundModel]) -> Path:
    """Return the path of the only model found. The same model in two stores is the first."""
    names = list(dict.fromkeys(one.name for one in found))
    if len(names) > 1:
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        raise ModelNotFoundError(f"{name}: name one of the files: {', '.join(names[:MAX_LISTED])}{more}")
    return _path_of(found[0])


def _path_of(found: FoundModel) -> Path:
    """Return a found model's path. Raises ModelNotFoundError if it is only a part of the model."""
    if found.has_adapter:
        raise ModelNotFoundError(
            f"{found.name}: has an adapter in Ollama's format, which is not read; the model without it is {found.path}"
        )
    return found.path.absolute()
