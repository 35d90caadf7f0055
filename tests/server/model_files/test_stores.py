"""server/model_files/stores.py: models that other programs keep, by the names that serve accepts."""

import json
from pathlib import Path

import pytest

from server.model_files.location import ModelNotFoundError, locate_model, model_id
from server.model_files.stores import ModelStores, found_models, tag_of

DIGEST = "a" * 64


@pytest.fixture
def stores(tmp_path: Path) -> ModelStores:
    return ModelStores(tmp_path / "hub", (tmp_path / "lm",), tmp_path / "ollama")


def _hub(stores: ModelStores, name: str, *files: str) -> Path:
    """Create a snapshot, whose files are links into blobs/, as `hf download` does."""
    folder = stores.hub_cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "blobs").mkdir()
    for file in files:
        (folder / "blobs" / f"sum-of-{file}").touch()
        (snapshot / file).symlink_to(folder / "blobs" / f"sum-of-{file}")
    return snapshot


def _lm_studio(stores: ModelStores, *files: str) -> Path:
    folder = stores.lm_studio[0] / "org" / "name"
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    return folder


def _ollama(stores: ModelStores, *parts: str, digest: str = f"sha256:{DIGEST}", adapter: bool = False) -> Path:
    assert stores.ollama is not None
    manifest = stores.ollama.joinpath("manifests", *parts)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "b" * 64}]
    layers.append({"mediaType": "application/vnd.ollama.image.model", "digest": digest})
    if adapter:
        layers.append({"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:" + "d" * 64})
    manifest.write_text(json.dumps({"layers": layers}))
    blob = stores.ollama / "blobs" / f"sha256-{DIGEST}"
    blob.parent.mkdir(exist_ok=True)
    blob.touch()
    return blob


def _names(stores: ModelStores) -> list[str]:
    return [found.name for found in found_models(stores)]


def test_without_any_store_nothing_is_found(stores: ModelStores) -> None:
    assert _names(stores) == []


def test_a_tag_names_a_file_of_a_repository(stores: ModelStores) -> None:
    snapshot = _hub(stores, "org/name-GGUF", "m.Q4_K_M.gguf", "m.Q8_0.gguf", "README.md")
    assert _names(stores) == ["org/name-GGUF:Q4_K_M", "org/name-GGUF:Q8_0"]
    assert locate_model("org/name-GGUF:Q4_K_M", stores) == snapshot / "m.Q4_K_M.gguf"
    assert locate_model("org/name-GGUF:q8_0", stores) == snapshot / "m.Q8_0.gguf"
    assert model_id("org/name-GGUF:Q4_K_M") == "org/name-GGUF:Q4_K_M"
    with pytest.raises(ModelNotFoundError, match=r"name one of the files: org/name-GGUF:Q4_K_M, org/name-GGUF:Q8_0"):
        locate_model("org/name-GGUF", stores)
    with pytest.raises(ModelNotFoundError, match=r"hf download org/name-GGUF --include '\*Q6_K\*'"):
        locate_model("org/name-GGUF:Q6_K", stores)


def test_the_first_part_stands_for_a_split_file(stores: ModelStores) -> None:
    """Its path is the link's: the other parts lie beside the link, under names of their own."""
    snapshot = _hub(stores, "org/name", *(f"m-Q4_K_M-0000{part}-of-00002.gguf" for part in (1, 2)))
    assert _names(stores) == ["org/name:Q4_K_M"]
    assert locate_model("org/name", stores) == snapshot / "m-Q4_K_M-00001-of-00002.gguf"


def test_a_repository_with_a_config_is_a_directory(stores: ModelStores) -> None:
    snapshot = _hub(stores, "org/name", "config.json", "model.safetensors", "extra.Q4_0.gguf")
    assert locate_model("org/name", stores) == snapshot
    assert locate_model("org/name:Q4_0", stores) == snapshot / "extra.Q4_0.gguf"


def test_lm_studio_is_searched_after_the_hub(stores: ModelStores) -> None:
    folder = _lm_studio(stores, "name.Q4_K_M.gguf", "name.Q6_K.gguf")
    assert locate_model("org/name:Q6_K", stores) == folder / "name.Q6_K.gguf"
    snapshot = _hub(stores, "org/name", "name.Q6_K.gguf")
    assert locate_model("org/name:Q6_K", stores) == snapshot / "name.Q6_K.gguf"
    assert locate_model("org/name:Q4_K_M", stores) == folder / "name.Q4_K_M.gguf"


def test_ollama_models_have_ollamas_names(stores: ModelStores) -> None:
    blob = _ollama(stores, "registry.ollama.ai", "library", "mixtral", "8x7b")
    _ollama(stores, "registry.ollama.ai", "library", "mixtral", "latest")
    _ollama(stores, "registry.ollama.ai", "someone", "tune", "latest")
    _ollama(stores, "hf.co", "org", "name-GGUF", "Q4_K_M")
    names = {"mixtral:8x7b", "mixtral:latest", "mixtral", "someone/tune:latest", "hf.co/org/name-GGUF:Q4_K_M"}
    assert {locate_model(name, stores) for name in names} == {blob}
    with pytest.raises(ModelNotFoundError, match="smoe models"):
        locate_model("mixtral:8x22b", stores)


@pytest.mark.parametrize("name", ["tune", "tune:latest"])
def test_a_model_with_an_adapter_of_ollamas_is_not_taken_for_the_one_without(name: str, stores: ModelStores) -> None:
    blob = _ollama(stores, "registry.ollama.ai", "library", "tune", "latest", adapter=True)
    with pytest.raises(ModelNotFoundError) as caught:
        locate_model(name, stores)
    adapter = "has an adapter in Ollama's format, which is not read"
    assert str(caught.value) == f"tune:latest: {adapter}; the model without it is {blob}"


@pytest.mark.parametrize("digest", ["sha256:" + "c" * 64, "../../etc/passwd", "sha256:../x"])
def test_a_manifest_without_weights_is_passed_over(digest: str, stores: ModelStores) -> None:
    _ollama(stores, "registry.ollama.ai", "library", "mixtral", "latest", digest=digest)
    assert stores.ollama is not None
    (stores.ollama / "manifests" / "registry.ollama.ai" / "library" / "mixtral" / "damaged").write_text("[1")
    assert _names(stores) == []


@pytest.mark.parametrize(
    ("file", "tag"),
    [
        ("mixtral-8x7b-instruct-v0.1.Q4_K_M.gguf", "Q4_K_M"),
        ("Mixtral-8x22B-v0.1.IQ4_XS-00001-of-00005.gguf", "IQ4_XS"),
        ("Mixtral-8x7B-Instruct-v0.1.i1-IQ2_XXS.gguf", "IQ2_XXS"),
        ("model-UD-IQ3_M.gguf", "UD-IQ3_M"),
        ("mixtral-f16.gguf", "f16"),
        ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("ggml-model-q5_k.gguf", "q5_k"),
        ("mixtral.gguf", "mixtral"),
    ],
)
def test_the_tag_is_the_type_in_the_files_name(file: str, tag: str) -> None:
    assert tag_of(Path(file)) == tag
