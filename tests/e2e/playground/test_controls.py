"""The sampling controls: the model's defaults and limits, and what is sent of what is touched."""

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.support.playground.browser import Visit, visiting
from tests.support.playground.states import say
from tests.support.playground.stub_server import CONTEXT, stub_server

pytestmark = pytest.mark.browser
NUMBER = ".slider:has(#{name}) input[type=number]"


def number(visit: Visit, name: str) -> Any:
    return visit.get(NUMBER.format(name=name))


def test_controls_show_the_models_defaults_and_limits_and_send_what_was_touched(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for()
        expect(number(visit, "temperature")).to_have_attribute("placeholder", "0.7")
        expect(number(visit, "top_p")).to_have_attribute("placeholder", "1")
        expect(visit.get("#temperature")).to_have_value("0.7")
        expect(number(visit, "top_k")).to_have_attribute("placeholder", "50")
        expect(number(visit, "max_tokens")).to_have_attribute("max", str(CONTEXT))
        number(visit, "temperature").fill("0.33")
        number(visit, "max_tokens").fill("99")
        visit.write("A prompt")
        assert (stub.bodies[-1]["temperature"], stub.bodies[-1]["max_tokens"]) == (0.33, 99)
        assert not {"top_p", "top_k"} & stub.bodies[-1].keys()
        expect(visit.get("#summary")).to_contain_text("of 2,048 context")
        number(visit, "max_tokens").fill(str(CONTEXT + 1))
        num_sent = len(stub.bodies)
        visit.get("#run").click()
        assert number(visit, "max_tokens").evaluate(
            "input => input.validity.rangeOverflow && document.activeElement === input"
        )
        assert len(stub.bodies) == num_sent
        visit.get("button[aria-label='Reset Max tokens']").click()
        visit.get("button[aria-label='Reset Temperature']").click()
        visit.write("A prompt")
        assert stub.bodies[-1]["max_tokens"] == 256 and "temperature" not in stub.bodies[-1]


def test_a_model_that_only_embeds_says_so_and_sends_nothing(browser: Browser) -> None:
    with stub_server() as stub:
        model = {**stub.model(), "num_experts": 0, "capabilities": {"completion_chat": False}}
        stub.model = lambda: model  # type: ignore[method-assign]
        with visiting(browser, stub.url) as visit:
            expect(visit.get("#failure")).to_contain_text("This model writes no text")
            expect(visit.get("#run")).to_be_disabled()
            expect(visit.get("label:has(#details)")).not_to_contain_text("experts")
            expect(visit.get("#mode-compare")).to_be_hidden()
            visit.get("#prompt").fill("A prompt")
            visit.page.keyboard.press("Control+Enter")
            expect(visit.get("#stop")).to_be_hidden()
            assert not stub.bodies


def test_a_control_behind_the_wide_map_comes_into_view_when_it_is_invalid_or_set(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for()
        visit.write("A prompt")
        number(visit, "max_tokens").fill(str(CONTEXT + 1))
        size = visit.get("#map-size")
        size.click()
        expect(visit.get("#sampling")).to_be_hidden()
        visit.get("#run").click()
        expect(number(visit, "max_tokens")).to_be_focused()
        expect(size).to_have_attribute("aria-pressed", "false")
        size.click()
        visit.get("#summary .seed").click()
        expect(visit.get("#seed")).to_be_visible()


def test_the_right_end_of_max_tokens_means_as_many_as_fit(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for()
        for tokens, sent in ((CONTEXT - 16, CONTEXT - 16), (CONTEXT, CONTEXT - 2)):
            visit.set_slider("#max_tokens", tokens)
            visit.write("A prompt")
            assert stub.bodies[-1]["max_tokens"] == sent
        visit.choose("mode", "chat")
        say(visit, "Hello")
        visit.wait_until_finished()
        assert stub.bodies[-1]["max_tokens"] is None, "without a limit a chat has all that fits"
