"""What all tests share: how large their counts are."""

import os

import pytest

# Triton's interpreter is chosen for a whole process: tests/model/ops/triton/test_interpreted.py starts one for these.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["triton"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scale", type=int, default=1, help="multiplies the counts of randomised tests")


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> int:
    """1 in `make test`, larger in `make test-full`."""
    value = request.config.getoption("--scale")
    assert isinstance(value, int)
    return value
