"""server/model_files/location.py: a model is a directory, a repository in the local cache, or the bundled demo."""

from pathlib import Path

import pytest

from server.model_files.location import ModelNotFoundError, described, locate_model, model_id
from server.model_files.stores import ModelStores


def test_no_model_is_the_bundled_demo(tmp_path: Path) -> None:
    import model

    assert locate_model(None, ModelStores(tmp_path)) == Path(model.__file__ or "").parent / "demo"
    assert model_id(None) == "smoe-demo"


def test_the_bundled_model_has_a_name(tmp_path: Path) -> None:
    assert locate_model("smoe-demo", ModelStores(tmp_path)) == locate_model(None, ModelStores(tmp_path))
    assert model_id("smoe-demo") == "smoe-demo"


def test_a_path_that_cannot_be_followed_has_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_id("~nobody-has-this-name/x") == "~nobody-has-this-name/x"

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert model_id("/private/x") == "/private/x"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("~nobody-has-this-name/m", "no such user"), ("n" * 300, "File name too long"), (f"/{'n' * 300}", "too long")],
)
def test_a_name_that_cannot_be_looked_at_is_one_line(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ModelNotFoundError, match=reason) as caught:
        locate_model(name, ModelStores(tmp_path))
    assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_searched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ModelNotFoundError, match=f"^{tmp_path}: Permission denied"):
        locate_model(str(tmp_path), ModelStores(tmp_path))


def test_a_directory_is_named_after_itself_and_never_by_its_path(tmp_path: Path) -> None:
    checkpoint = tmp_path / "my-mixtral"
    checkpoint.mkdir()
    (checkpoint / "config.json").touch()
    assert locate_model(str(checkpoint), ModelStores(tmp_path)) == checkpoint
    assert model_id(f"{checkpoint}/") == "my-mixtral"


def test_a_file_is_named_after_itself_without_its_suffix(tmp_path: Path) -> None:
    file = tmp_path / "mixtral.Q4_K_M.gguf"
    file.touch()
    assert locate_model(str(file), ModelStores(tmp_path)) == file
    assert model_id(str(file)) == "mixtral.Q4_K_M"


def test_a_folder_with_one_gguf_file_stands_for_it(tmp_path: Path) -> None:
    (tmp_path / "a-00001-of-00002.gguf").touch()
    (tmp_path / "a-00002-of-00002.gguf").touch()
    assert locate_model(str(tmp_path), ModelStores(tmp_path)) == tmp_path / "a-00001-of-00002.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelNotFoundError, match=r"has 2 GGUF files; name one, such as \S+a-00001-of-00002\.gguf"):
        locate_model(str(tmp_path), ModelStores(tmp_path))
    (tmp_path / "config.json").touch()  # beside GGUF files it is theirs, unless there are other weights
    with pytest.raises(ModelNotFoundError, match="has 2 GGUF files"):
        locate_model(str(tmp_path), ModelStores(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert locate_model(str(tmp_path), ModelStores(tmp_path)) == tmp_path


def test_a_pack_of_a_gguf_file_is_a_checkpoint_whose_tokenizer_is_no_model(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.gguf", "weights.smoe"):
        (tmp_path / file).touch()
    assert locate_model(str(tmp_path), ModelStores(tmp_path)) == tmp_path


def test_a_repository_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc\n")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "params.json").touch()
    assert locate_model("org/name", ModelStores(tmp_path)) == folder / "snapshots" / "abc"
    assert model_id("org/name") == "org/name"


def test_only_a_file_is_called_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.touch()
    assert described(file) == f"GGUF file {file}"
    assert described(tmp_path) == str(tmp_path)


def test_a_folder_without_a_model_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        ModelNotFoundError, match=r"has no model: neither config\.json nor params\.json, and no \.gguf file"
    ):
        locate_model(str(tmp_path), ModelStores(tmp_path))


@pytest.mark.parametrize("name", ["./nope", "../nope", "~/no-such-folder", "/nope/nope", "./nope:Q4_K_M"])
def test_a_path_is_never_taken_for_a_name_to_download(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file or directory") as caught:
        locate_model(name, ModelStores(tmp_path))
    assert "hf download" not in str(caught.value)


def test_a_name_under_an_existing_folder_may_be_meant_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"models/mixtral: no such directory, and not in .*; download it with"):
        locate_model("models/mixtral", ModelStores(tmp_path))


@pytest.mark.parametrize(
    ("name", "part"),
    [("org/name", "hf download org/name"), ("/no/where", "no such file or directory"), ("no-name", "smoe models")],
)
def test_a_missing_model_is_reported_with_the_way_out(tmp_path: Path, name: str, part: str) -> None:
    with pytest.raises(ModelNotFoundError, match=part):
        locate_model(name, ModelStores(tmp_path))


def test_a_reference_to_a_deleted_snapshot_counts_as_missing(tmp_path: Path) -> None:
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")
    with pytest.raises(ModelNotFoundError):
        locate_model("org/name", ModelStores(tmp_path))
