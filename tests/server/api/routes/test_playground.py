"""The playground: its page and files, their headers, and that they load nothing from other servers."""

import re
from html.parser import HTMLParser

import httpx
import pytest

from server.api.app import create_app
from server.api.playground_files import FOLDER, open_paths
from server.http.middleware import with_middleware
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import client_of, saying, state_around

pytestmark = pytest.mark.anyio
NAMES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
FONTS = FOLDER / "fonts"
MAX_BYTES, MAX_FONT_BYTES = 150_000, 40_000  # of the whole page without its font, and of the font


class Links(HTMLParser):
    """The files that a page loads, and its inline scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]
        self.inline += [name for name in values if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in values):
            self.inline.append(tag)


def with_key() -> httpx.AsyncClient:
    state = state_around(FakeEngine(saying("a")))
    app = with_middleware(
        create_app(state),
        api_keys=("secret",),
        open_paths=open_paths(),
        metrics_auth=True,
        max_body_bytes=1 << 20,
        allowed_origins=(),
        root_path="/prefix",
        on_http=state.metrics.http,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://smoe")


async def test_the_page_may_load_and_reach_only_this_server() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        page = await client.get("/")
    rules = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    own = ("script-src", "style-src", "img-src", "font-src", "connect-src")
    assert {rules[kind] for kind in own} == {"'self'"}
    assert {rules[kind] for kind in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["content-type"] == "text/html; charset=utf-8"


async def test_the_page_has_nothing_inline_and_every_file_it_names_exists() -> None:
    links = Links()
    links.feed((FOLDER / "index.html").read_text())
    assert not links.inline
    assert links.loaded
    assert {link.removeprefix("playground/") for link in links.loaded} <= set(NAMES)


def test_the_scripts_import_files_that_exist_and_name_no_other_host() -> None:
    for path in FOLDER.rglob("*.js"):
        source = path.read_text()
        imported = [(path.parent / name).resolve() for name in re.findall(r'from "(\..+?)"', source)]
        assert {file.relative_to(FOLDER).as_posix() for file in imported} <= set(NAMES), path.name
        assert set(re.findall(r"https?://[^\s\"'`]+", source)) <= {"http://www.w3.org/2000/svg"}, path.name
        assert "innerHTML" not in source, path.name


def test_the_page_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    fonts = [size for path, size in sizes.items() if path.is_relative_to(FONTS)]
    assert sum(fonts) <= MAX_FONT_BYTES
    assert sum(sizes.values()) - sum(fonts) <= MAX_BYTES


def test_the_license_of_the_font_is_beside_it() -> None:
    assert {path.name for path in FONTS.iterdir()} == {"OFL.txt", "inter.woff2"}
    assert "SIL Open Font License" in (FONTS / "OFL.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
async def test_each_file_is_served_unchanged(name: str) -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        reply = await client.get(f"/playground/{name}")
        assert (reply.status_code, reply.content) == (200, (FOLDER / name).read_bytes())
        again = await client.get(f"/playground/{name}", headers={"if-none-match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/", "/prefix/", "/playground/main.js", "/prefix/playground/styles/style.css"])
async def test_the_page_and_its_files_need_no_key_where_the_api_does(path: str) -> None:
    async with with_key() as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.head(path)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground/none.js",
        "/playground/text",
        "/playground/text/",
        "/playground/../app.py",
        "/playground/%2e%2e/app.py",
    ],
)
async def test_other_paths_under_the_page_are_no_files(path: str) -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        assert (await client.get(path)).status_code == 404
    async with with_key() as client:
        assert (await client.get(path)).status_code == 401
