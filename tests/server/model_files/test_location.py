"""server/model_files/location.py: a model is a directory, a repository in the local cache, or the bundled demo."""

from pathlib import Path

import pytest

from server.model_files.location import ModelNotFoundError, locate_model, model_id
from server.model_files.stores import ModelStores


def test_no_model_is_the_bundled_demo(tmp_path: Path) -> None:
    import model

    assert locate_model(None, ModelStores(tmp_path)) == Path(model.__file__ or "").parent / "demo"
    assert model_id(None) == "smoe-demo"


def test_a_directory_is_named_after_itself_and_never_by_its_path(tmp_path: Path) -> None:
    checkpoint = tmp_path / "my-mixtral"
    checkpoint.mkdir()
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
    (tmp_path / "config.json").touch()
    assert locate_model(str(tmp_path), ModelStores(tmp_path)) == tmp_path


def test_a_repository_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc\n")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    assert locate_model("org/name", ModelStores(tmp_path)) == folder / "snapshots" / "abc"
    assert model_id("org/name") == "org/name"


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
