"""lm-eval's local-completions: its scores through the API equal those of the model's own logits, and tasks of the
shapes of humaneval and gsm8k get the texts that a plain request gets, cut at the first of their stop strings."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from tests.support.paths import DEMO
from tests.support.servers.running import MODEL, RunningServer

QUESTIONS = [
    ("It was a truth universally", ["acknowledged", "green", "printf", "and the"], 0),
    ("In the beginning God created the", ["ball room", "heaven and the earth", "def main", "engine"], 1),
    ("def __init__", ["thou shalt", "Mr. Darcy", "(self, name):", "Grüße"], 2),
    ("She was the youngest of the two daughters of a most", ["import os", "affectionate father", "None"], 1),
    ("And the LORD said unto", ["sys.path", "Moses", "the ball"], 1),
    ("    return", ["self", "unto them", "her sister"], 0),
]
TASK = """\
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""

FUNCTIONS = ["import os\n\ndef read(path):\n", "class Word:\n    def __init__(self, text):\n"]
SUMS = [("What is 1 + 1?", "It is 2.\n#### 2"), ("What is 2 + 3?", "It is 5.\n#### 5"), ("And 4 + 4?", "8\n#### 8")]
STOPS = {
    "functions": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],  # humaneval's
    "sums": ["Question:", "</s>", "<|im_end|>"],  # gsm8k's
}
NUM_TOKENS = 100
TOKENIZER = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
GENERATION = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
output_type: generate_until
test_split: test
fewshot_split: test
num_fewshot: {num_fewshot}
doc_to_text: {text}
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: {until}
  max_gen_toks: {max_tokens}
  do_sample: false
  temperature: 0.0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: strict-match
    filter:
      - function: regex
        regex_pattern: "#### (-?[0-9.,]+)"
      - function: take_first
"""


def write_generation(folder: Path, name: str, documents: list[dict[str, str]], text: str, num_fewshot: int) -> None:
    """Write a task whose answers are generated."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(documents))
    task = GENERATION.format(
        name=name,
        path=path,
        text=json.dumps(text),
        until=json.dumps(STOPS[name]),
        num_fewshot=num_fewshot,
        max_tokens=NUM_TOKENS,
    )
    (folder / f"{name}.yaml").write_text(task)


@pytest.fixture(scope="module")
def scored(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Report of lm-eval, with its samples."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield evaluate(server, tmp_path_factory.mktemp("tasks"), monkeypatch)


def evaluate(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run all tasks."""
    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    monkeypatch.setitem(os.environ, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.tasks import TaskManager

    documents = [{"question": question, "choices": choices, "answer": best} for question, choices, best in QUESTIONS]
    (tmp_path / "documents.json").write_text(json.dumps(documents))
    (tmp_path / "endings.yaml").write_text(TASK.format(path=tmp_path / "documents.json"))
    functions = [{"prompt": prompt, "answer": "check(read)"} for prompt in FUNCTIONS]
    write_generation(tmp_path, "functions", functions, "{{prompt}}", num_fewshot=0)
    sums = [{"question": question, "answer": answer} for question, answer in SUMS]
    write_generation(tmp_path, "sums", sums, "Question: {{question}}\nAnswer:", num_fewshot=2)
    report: dict[str, Any] = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": MODEL,
            "base_url": server.url + "/v1/completions",
            "tokenizer_backend": "remote",
            "num_concurrent": 3,
            "max_retries": 1,
        },
        tasks=["endings", *STOPS],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
    )
    return report


def test_loglikelihoods_and_accuracy_are_the_models_own(scored: dict[str, Any]) -> None:
    score = _Scorer()
    correct = 0
    samples = sorted(scored["samples"]["endings"], key=lambda sample: sample["doc_id"])
    for sample, (_, _, best) in zip(samples, QUESTIONS, strict=True):
        exact = [score(context, ending) for context, ending in sample["arguments"]]
        ours = [loglikelihood for loglikelihood, _ in sample["filtered_resps"]]
        assert ours == pytest.approx(exact, abs=1e-4)
        correct += exact.index(max(exact)) == best
    assert scored["results"]["endings"]["acc,none"] == pytest.approx(correct / len(QUESTIONS))
    assert correct > len(QUESTIONS) / 2, "a model that scores at chance"


@pytest.mark.parametrize("name", STOPS)
def test_generated_answers_are_the_models_own_up_to_the_first_stop_string(
    server: RunningServer, scored: dict[str, Any], name: str
) -> None:
    samples = scored["samples"][name]
    assert len(samples) == len({"functions": FUNCTIONS, "sums": SUMS}[name])
    for sample in samples:
        [(prompt, settings)] = sample["arguments"]
        assert [stop for stop in settings["until"] if stop in STOPS[name]] == STOPS[name]
        [[answer]] = sample["resps"]
        ids = TOKENIZER.encode(prompt)  # lm-eval sends ids without bos
        whole = server.complete(ids, max_tokens=NUM_TOKENS, temperature=0).json()["choices"][0]["text"]
        ends = [whole.find(stop) for stop in STOPS[name] if stop in whole]
        assert answer == whole[: min(ends, default=len(whole))]


def test_gsm8ks_prompt_has_the_examples_before_the_question(scored: dict[str, Any]) -> None:
    [(prompt, _)] = scored["samples"]["sums"][0]["arguments"]
    assert prompt.count("Question:") == prompt.count("Answer:") == 3 and prompt.count("####") == 2


class _Scorer:
    """log P(ending | context) from the logits of transformers' own Mixtral, in float32."""

    def __init__(self) -> None:
        from transformers import MixtralForCausalLM

        torch.set_num_threads(1)
        self._model = MixtralForCausalLM.from_pretrained(DEMO, dtype=torch.float32)

    @torch.inference_mode()
    def __call__(self, context: str, ending: str) -> float:
        """Score the ending's tokens, cut as lm-eval does: tokenize context and ending together, without bos, and drop
        as many tokens in front as the context has by itself."""
        whole = TOKENIZER.encode(context + ending)
        start = len(TOKENIZER.encode(context))
        logits = self._model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        return sum(logits[i - 1, whole[i]].item() for i in range(start, len(whole)))
