"""The front end alone, measured with the stub engine."""

import json
import os
import time

import pytest
from typer.testing import CliRunner

from server.bench import frontend
from server.bench.load_generator import RequestTiming
from server.cli.main import app


def test_the_stub_measures_the_real_front_end() -> None:
    result = CliRunner().invoke(app, ["bench", "serve", "--stub", "--stub-streams", "4", "--stub-steps", "0", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["kind"], figures["streams"], figures["errors"]) == ("stub", 4, 0)
    assert figures["tokens"] == 4 * 400 and 4 <= figures["chunks"] <= figures["tokens"]
    assert figures["cpu_seconds"] == 0 or figures["chunks_per_core_s"] > 0


def test_a_round_too_short_for_the_clock_has_no_figure_per_core() -> None:
    timing = RequestTiming(start_s=0.0, chunk_s=[0.1, 0.2], output_tokens=2)
    figures = frontend.figures([timing], 0.2, 0.0, 0.0)
    assert (figures["chunks"], figures["chunks_per_core_s"]) == (2, None)
    assert "too short" in frontend.as_text(figures)


def test_the_cpu_time_is_that_of_the_given_process() -> None:
    assert frontend.cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)
