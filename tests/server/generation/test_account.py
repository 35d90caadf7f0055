"""server/generation/account.py: each choice is counted once."""

import pytest

from server.generation.account import RequestAccount
from server.observability.access_log import RequestRecord
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import outcomes, saying, state_around

pytestmark = pytest.mark.anyio


async def test_an_account_is_closed_once() -> None:
    state = state_around(FakeEngine(saying("a")))
    account = RequestAccount(state.metrics, RequestRecord("id"), num_prompt_tokens=3, arrival_s=0.0)
    account.close("stop", 1.0)
    account.close("abort", 2.0)
    assert outcomes(state) == {"received": 1, "stop": 1}
