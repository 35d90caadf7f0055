"""Shared by all tests: the options `--scale` and `--part`, and the mark `slow`, which is given by path."""

import os
import signal
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.paths import ROOT
from tests.support.tls import CERTIFICATE

settings.register_profile("no deadline", deadline=None)  # an example takes long on a busy machine
settings.load_profile("no deadline")

# Folders and files whose tests `make test-fast` leaves out: they start servers, browsers, compilers or interpreters, or
# compare whole models. `pytest --durations 20` finds new ones.
SLOW = (
    "tests/deploy/envoy",
    "tests/deploy/ray/test_replica.py",
    "tests/e2e",
    "tests/engine/bench",
    "tests/engine/distributed/test_device_ranks.py",
    "tests/engine/distributed/test_host_ranks.py",
    "tests/engine/distributed/test_ranks.py",
    "tests/engine/distributed/test_reception.py",
    "tests/engine/execution/test_fault_isolation.py",
    "tests/engine/execution/test_fault_isolation_of_numbers.py",
    "tests/engine/execution/test_no_device_reads.py",
    "tests/engine/outputs/test_adapters.py",
    "tests/engine/outputs/test_async_scheduling.py",
    "tests/engine/outputs/test_combinations.py",
    "tests/engine/outputs/test_continuous_batching.py",
    "tests/engine/outputs/test_embeddings.py",
    "tests/engine/outputs/test_expert_memory.py",
    "tests/engine/outputs/test_gate_logits.py",
    "tests/engine/outputs/test_packs.py",
    "tests/engine/outputs/test_parity.py",
    "tests/engine/outputs/test_same_bits.py",
    "tests/engine/outputs/test_speculation.py",
    "tests/engine/outputs/test_stored_formats.py",
    "tests/engine/planning/test_predicted_steps.py",
    "tests/engine/startup/test_packing.py",
    "tests/engine/test_garbage_collection.py",
    "tests/engine/test_process.py",
    "tests/engine/test_step_log.py",
    "tests/model/checkpoint/gguf/test_tensors.py",
    "tests/model/checkpoint/quantized/test_matrices.py",
    "tests/model/checkpoint/test_mutated_headers.py",
    "tests/model/ops/native/amx",
    "tests/model/ops/native/arm",
    "tests/model/ops/native/test_block_formats.py",
    "tests/fuzz",
    "tests/model/ops/native/test_same_bits.py",
    "tests/model/ops/native/test_sanitizers.py",
    "tests/model/ops/native/test_thread_pool.py",
    "tests/model/ops/triton/test_interpreted.py",
    "tests/model/lora/test_networks.py",
    "tests/model/pack/test_experts_in_page_cache.py",
    "tests/model/pack/test_stored_experts.py",
    "tests/model/test_gguf_logits.py",
    "tests/model/test_mixtral.py",
    "tests/model/lora/test_peft.py",
    "tests/model/test_tensor_parallel.py",
    "tests/noninterference",
    "tests/server/api/test_claude_code_requests.py",
    "tests/server/api/test_codex_requests.py",
    "tests/server/api/test_constraint_spellings.py",
    "tests/server/api/openapi/test_examples.py",
    "tests/server/bench/test_step_calibration.py",
    "tests/server/chat/test_jinja_sandbox.py",
    "tests/server/chat/test_mistral_format.py",
    "tests/server/chat/test_repair.py",
    "tests/server/cli/bench",
    "tests/server/cli/plan/test_expert_memory.py",
    "tests/server/cli/run/test_command.py",
    "tests/server/cli/test_client_commands.py",
    "tests/server/cli/test_completion.py",
    "tests/server/cli/test_doctor.py",
    "tests/server/cli/test_health.py",
    "tests/server/cli/experts/test_command.py",
    "tests/server/cli/test_main.py",
    "tests/server/cli/test_pack.py",
    "tests/server/cli/plan/test_capacity.py",
    "tests/server/cli/test_terminal_text.py",
    "tests/server/cli/test_worked_example.py",
    "tests/server/cli/test_wrong_inputs.py",
    "tests/server/engine_client/test_supervisor.py",
    "tests/server/http/test_acceptor.py",
    "tests/server/http/test_bad_requests.py",
    "tests/server/http/test_connections.py",
    "tests/server/http/test_disconnect.py",
    "tests/server/http/test_protocol.py",
    "tests/server/lifecycle/restart/test_restart.py",
    "tests/server/lifecycle/test_batches_after_a_kill.py",
    "tests/server/lifecycle/test_interpreter.py",
    "tests/server/lifecycle/test_launch.py",
    "tests/server/lifecycle/test_sandbox_of_the_server.py",
    "tests/server/lifecycle/test_serve.py",
    "tests/server/lifecycle/test_serve_until_exit.py",
    "tests/server/lifecycle/test_trace_export.py",
    "tests/server/sandbox/test_pool.py",
    "tests/server/structured_output/test_constraints.py",
    "tests/server/structured_output/test_grammar_bombs.py",
    "tests/server/tokenizer/test_damaged_files.py",
    "tests/server/tokenizer/test_encoders.py",
    "tests/server/tokenizer/test_gguf_vocabulary.py",
    "tests/server/tokenizer/test_tekken.py",
    "tests/server/tokenizer/test_tokenizer.py",
    "tests/server/tools/test_constraints.py",
    "tests/server/tools/test_tool_prompts.py",
    "tests/simulator",
    "tests/support/forked",
    "tests/test_smoe.py",
    "tests/triton",
    "tests/triton_compiled",
)

# Files that take long, in the order in which they start: in front of all others, so that at the end of a run no process
# waits for one of them. Those that keep two cores busy alternate with those that use one.
LONG = (
    "tests/model/ops/native/test_sanitizers.py",
    "tests/noninterference/test_noninterference.py",
    "tests/model/ops/triton/test_interpreted.py",
    "tests/simulator/system/test_schedules.py",
    "tests/triton_compiled/test_compiled.py",
    "tests/simulator/test_schedules.py",
    "tests/model/ops/native/arm/test_arm.py",
    "tests/e2e/faults/test_recovery.py",
    "tests/e2e/faults/test_chaos.py",
    "tests/e2e/faults/test_combined_faults.py",
    "tests/e2e/faults/test_kills_under_load.py",
    "tests/e2e/ranks/test_tensor_parallel.py",
    "tests/e2e/ranks/test_several_hosts.py",
    "tests/triton_compiled/test_variants.py",
    "tests/fuzz/test_corpus.py",
)
SLOW_PATHS = {ROOT / path for path in SLOW}
PLACES = {ROOT / path: place for place, path in enumerate(LONG)}
MOVED = [path for path in (*SLOW, *LONG) if not (ROOT / path).exists()]
assert not MOVED, f"change SLOW and LONG in tests/conftest.py; these were moved: {MOVED}"

# For httpx, which reads a file of 140 certificates for each client: all servers of tests are on this machine.
os.environ["SSL_CERT_FILE"] = str(CERTIFICATE)

# Tests start hundreds of processes. Where images forbid bytecode, each would compile the same sources anew, and pytest
# would rewrite the assertions of every file in every run.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and started servers would inherit that

# Triton's interpreter is chosen for a whole process: tests/model/ops/triton/test_interpreted.py starts one with
# TRITON_INTERPRET=1 for these. With 0 they run on a GPU.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") in ("0", "1") else ["triton"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scale", type=int, default=1, help="multiplies the counts of randomised tests")
    parser.addoption("--part", default="1/1", help="2/3 runs the second, the fifth, the eighth ... test only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, count = map(int, config.getoption("--part").split("/"))
    items[:] = items[number - 1 :: count]
    items.sort(key=lambda item: PLACES.get(item.path, len(PLACES)))
    for item in items:
        if is_slow(item.path):
            item.add_marker("slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip slow modules under `-m "not slow"` before they are imported: packages that they need may be absent."""
    return True if "not slow" in config.option.markexpr and is_slow(collection_path) else None


@cache  # asked for each of thousands of tests
def is_slow(path: Path) -> bool:
    """True for the paths of SLOW and for everything in its folders."""
    return not SLOW_PATHS.isdisjoint((path, *path.parents))


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> int:
    """1 in `make test`, 10 in `make test-full`."""
    value = request.config.getoption("--scale")
    assert isinstance(value, int)
    return value
