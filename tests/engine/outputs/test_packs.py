"""A pack gives the tokens, the logprobs and the fingerprint of the checkpoint that it was made of."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import engine as engine_module
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.startup import assembly, loading
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from model.pack import weight_memory
from smoe import LocalEngine, SamplingParams
from tests.model.checkpoint.test_mistral_layout import save_as_mistral
from tests.support.checkpoints.gguf import GgufShape, iq2_m, vocabulary_fields, write_gguf
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout, save_random_checkpoint
from tests.support.checkpoints.packs import flip_byte, make_pack
from tests.support.checkpoints.quantized import save_quantized
from tests.support.paths import DEMO

SMALL: dict[str, Any] = {"threads": 1, "num_kv_blocks": 16, "max_num_batched_tokens": 32}
PROMPTS = [[1, 5, 9, 33, 70], [1, 100], list(range(40))]

Results = tuple[str, list[tuple[list[int], list[float]]]]


def results(path: Path, **settings: Any) -> Results:
    """Return the fingerprint, and greedy tokens with their logprobs."""
    engine = LocalEngine(path, **(SMALL | settings))
    return engine.fingerprint, answers_of(engine)


def answers_of(engine: LocalEngine) -> list[tuple[list[int], list[float]]]:
    params = SamplingParams(max_tokens=6, temperature=0, num_logprobs=1, ignore_eos=True)
    return [(c.token_ids, [one.logprob for one in c.logprobs]) for c in engine.generate(PROMPTS, params)]


DEMO_SETTINGS: list[dict[str, str]] = [
    {"quantization": quantization, "dtype": dtype}
    for quantization in ("none", "int8", "int4")
    for dtype in ("auto", "float32")
] + [{"quantization": "lossless", "dtype": "bfloat16"}]


@pytest.mark.parametrize("settings", DEMO_SETTINGS, ids=str)
def test_a_pack_gives_the_bits_of_the_bundled_model_without_flags(settings: dict[str, str], tmp_path: Path) -> None:
    packed = make_pack(DEMO, tmp_path / "p", **settings)
    assert results(packed) == results(DEMO, **settings)


def test_lossless_weights_give_the_answers_and_the_fingerprint_of_bfloat16() -> None:
    assert results(DEMO, quantization="lossless") == results(DEMO)


def gguf(path: Path) -> Path:
    write_gguf(path / "a.gguf", GgufShape(num_layers=2))
    return path / "a.gguf"


def gguf_with_code_books(path: Path) -> Path:
    write_gguf(path / "a.gguf", GgufShape(num_layers=2), iq2_m)
    return path / "a.gguf"


def split_tied_gguf(path: Path) -> Path:
    write_gguf(path / "a.gguf", GgufShape(num_layers=2, tied=True, merged=False, tensors_per_part=9))
    return next(path.glob("a-00001-of-*.gguf"))


def act_order(path: Path) -> Path:
    shape = Shape(dim=64, hidden_dim=64, num_experts=4, vocab_size=104)
    save_quantized(save_in_layout(random_model(shape), path / "plain"), path / "q", "GPTQ act-order")
    return path / "q"


def fp8(path: Path) -> Path:
    shape = Shape(dim=64, hidden_dim=64, num_experts=4, vocab_size=104)
    save_quantized(save_in_layout(random_model(shape), path / "plain"), path / "q", "FP8")
    return path / "q"


def mistral_layout(path: Path) -> Path:
    save_as_mistral(path, Shape(num_experts=4))
    return path


def dense(path: Path) -> Path:
    save_random_checkpoint(Shape(num_experts=0, window=16, tied=True), path)
    return path


SOURCES = [gguf, gguf_with_code_books, split_tied_gguf, act_order, fp8, mistral_layout, dense]


@pytest.mark.parametrize("source_of", SOURCES, ids=lambda function: function.__name__)
def test_a_pack_of_any_layout_gives_the_bits_of_its_source(source_of: Callable[[Path], Path], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = source_of(tmp_path / "source")
    packed = make_pack(source, tmp_path / "p", dtype="float32")
    expected = results(source, dtype="float32")
    shutil.rmtree(tmp_path / "source")  # nothing of it is needed any more
    assert results(packed) == expected


@pytest.fixture(scope="module")
def demo_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(DEMO, tmp_path_factory.mktemp("packs") / "demo-int8", quantization="int8")


@pytest.mark.parametrize("memory", ["map", "copy", "lock"])
def test_every_kind_of_memory_gives_the_same_bits(memory: str, demo_pack: Path) -> None:
    assert results(demo_pack, weights_memory=memory) == results(DEMO, quantization="int8")


def test_a_gguf_pack_has_the_tokenizer_of_its_file(tmp_path: Path) -> None:
    fields = vocabulary_fields(DEMO / "tokenizer.model") | {"tokenizer.chat_template": "{{ bos_token }}"}
    write_gguf(tmp_path / "a.gguf", GgufShape(vocab_size=3072, fields=fields))
    packed = LocalEngine(make_pack(tmp_path / "a.gguf", tmp_path / "p"), **SMALL).tokenizer
    source = LocalEngine(tmp_path / "a.gguf", **SMALL).tokenizer
    text = "It was not in her power, naïve 漢字\n  to"
    assert packed.encode(text) == source.encode(text)
    assert (packed.chat_template, packed.eos_ids, packed.bos_id) == (
        source.chat_template,
        source.eos_ids,
        source.bos_id,
    )


def test_a_budget_sampled_from_the_first_layers_leaves_the_bits(
    demo_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large packs do not read all weights at the start."""
    sampled: list[int] = []
    original = assembly.sampled_token_budget

    def note(*arguments: Any) -> int:
        sampled.append(original(*arguments))
        return sampled[-1]

    monkeypatch.setattr(assembly, "SAMPLED_BYTES", 0)
    monkeypatch.setattr(assembly, "sampled_token_budget", note)
    _, answers = results(demo_pack, max_num_batched_tokens=None)
    assert len(sampled) == 1 and 32 <= sampled[0] <= 2048
    assert answers == results(DEMO, quantization="int8")[1]


def test_mapped_weights_are_shared_and_read_ahead(demo_pack: Path) -> None:
    """The map is shared and read-only, so that all servers of a pack have the same pages."""
    file = demo_pack / WEIGHTS_NAME
    header = read_header(demo_pack)
    memory = weight_memory.mapped_file(file, header.file_bytes)
    assert memory.data_ptr() % (2 << 20) == 0
    assert memory.numpy().tobytes() == file.read_bytes()
    ended: list[bool] = []
    reader = weight_memory.BackgroundReader([memory])
    reader.start(lambda: ended.append(True))
    assert reader.done.wait(60) and ended == [True]
    with open("/proc/self/maps", encoding="ascii") as maps:
        rights = [line.split()[1] for line in maps if line.rstrip().endswith(str(file.resolve()))]
    assert rights and set(rights) == {"r--s"}


def test_reading_ahead_begins_when_the_engine_is_made(demo_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads take the cores from what is left of a start."""
    events: list[str] = []
    make_scheduler = engine_module.make_scheduler

    def note(*arguments: Any) -> Any:
        events.append("made")
        return make_scheduler(*arguments)

    monkeypatch.setattr(engine_module, "make_scheduler", note)
    monkeypatch.setattr(weight_memory.BackgroundReader, "start", lambda self, on_end: events.append("read"))
    LocalEngine(demo_pack, **SMALL)
    assert events == ["made", "read"]


def test_what_may_not_be_locked_is_refused_in_one_line(demo_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: int, num_bytes: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(weight_memory, "lock_memory", refuse)
    with pytest.raises(CheckpointError, match=r"^--weights-memory lock: .* \(ulimit -l, .*--weights-memory map$"):
        LocalEngine(demo_pack, weights_memory="lock", **SMALL)


def test_verify_finds_a_flipped_byte_and_names_its_tensor(demo_pack: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(demo_pack, tmp_path / "damaged")
    tensor = read_header(damaged).tensors["layers.2.experts.5"]
    flip_byte(damaged / WEIGHTS_NAME, tensor.start + tensor.num_bytes // 2)
    with pytest.raises(CheckpointError, match=r"weights\.smoe is damaged: tensor layers\.2\.experts\.5 has another"):
        LocalEngine(damaged, verify=True, **SMALL)


def test_ranks_share_a_pack_and_give_the_same_bits(demo_pack: Path) -> None:
    engine = LocalEngine(demo_pack, tensor_parallel_size=2, **SMALL)
    ranks = engine._engine.loaded.ranks
    assert ranks is not None
    try:
        assert answers_of(engine) == results(DEMO, quantization="int8")[1]
    finally:
        ranks.close()


def test_a_checkpoint_that_is_to_be_mapped_is_refused(demo_pack: Path) -> None:
    with pytest.raises(EngineConfigError, match="needs a pack; make one with: smoe pack"):
        LocalEngine(DEMO, weights_memory="map", **SMALL)
    assert EngineConfig(model="m").weights_memory == "auto"


def test_a_long_load_names_the_command_that_makes_a_pack(demo_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ADVISED_BYTES", 0)
    [advice] = [line for line in warnings_of(DEMO, quantization="int8") if "pack" in line]
    assert advice.endswith(f" s; a pack is mapped instead: smoe pack {DEMO} --quantization int8 -o DIR")
    assert not [line for line in warnings_of(demo_pack) if "pack" in line]


def warnings_of(path: Path, **settings: Any) -> tuple[str, ...]:
    """Return the warnings of a start."""
    return loading.load(EngineConfig(model=str(path), **(SMALL | settings)), lambda *progress: None).warnings
