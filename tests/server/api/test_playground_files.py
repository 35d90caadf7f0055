"""server/api/playground_files.py: the files with their types, and the paths that need no API key."""

from server.api.playground_files import FOLDER, INDEX, files, open_paths


def test_every_file_of_the_folder_has_its_content_and_type() -> None:
    found = files()
    assert set(found) == {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert found[INDEX][1].startswith("text/html")
    assert all(content == (FOLDER / name).read_bytes() for name, (content, _) in found.items())


def test_the_page_and_its_files_are_the_only_open_paths() -> None:
    assert open_paths() == {"/", *(f"/playground/{name}" for name in files())}
