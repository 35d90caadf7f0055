"""Read whether a checkpoint embeds texts, and check that it does so as this network can. Imports no torch.

Sentence Transformers describes an embedding model beside its weights: modules.json lists the steps from tokens to a
vector, and the pooling step has a config of its own.
"""

from pathlib import Path

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.errors import CheckpointError
from model.checkpoint.json_files import printable, read_json_object, read_json_objects
from model.config import MISTRAL_EMBEDDING

MODULES = "modules.json"
MAX_BYTES = 1 << 20
STEPS = ("Transformer", "Pooling", "Normalize")  # the last one may be absent: vectors are always scaled to length 1
LAST_TOKEN = "lasttoken"


def embeds(path: Path, architecture: str, warnings: list[str]) -> bool:
    """Return whether the checkpoint in directory `path` was trained to embed texts.

    Raises CheckpointError for an embedding model with another pooling than the last token's. A generation model with
    one is served without embeddings; `warnings` gets a line about it.
    """
    is_headless = architecture == MISTRAL_EMBEDDING
    if not (path / MODULES).is_file():
        return is_headless
    try:
        _check_modules(path)
    except CheckpointError as error:
        if is_headless:
            raise
        warnings.append(f"{error}; the model is served without embeddings")
        return False
    return True


def _check_modules(path: Path) -> None:
    file = path / MODULES
    modules = [JsonFields(file, values) for values in read_json_objects(file, MAX_BYTES)]
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds not in (list(STEPS), list(STEPS[:2])):
        raise CheckpointError(f"{file} has the steps {printable(kinds)}; only {', '.join(STEPS)} are supported")
    folder = modules[1].get("path")
    if not isinstance(folder, str) or Path(folder).name != folder:
        raise modules[1].error(f"the path of the pooling step is {printable(folder)}, not the name of a folder")
    config = path / folder / "config.json"
    _check_pooling(JsonFields(config, read_json_object(config, MAX_BYTES)))


def _check_pooling(fields: JsonFields) -> None:
    """Raise CheckpointError unless the pooling is the last token's, in either spelling of the config."""
    prefix = "pooling_mode_"
    modes = [name.removeprefix(prefix) for name in fields.names() if name.startswith(prefix) and fields.flag(name)]
    if fields.get("pooling_mode") is not None:
        modes.append(str(fields.get("pooling_mode")))
    if modes != [LAST_TOKEN]:
        raise fields.error(f"the pooling is {printable(modes)}; only that of the last token is supported")
