"""lm-eval's local-completions: its scores through the API equal those of the model's own logits."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from tests.support.paths import DEMO
from tests.support.running import MODEL, RunningServer

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


@pytest.fixture
def scored(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Report of lm-eval, with its samples."""
    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    monkeypatch.setitem(os.environ, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.tasks import TaskManager

    documents = [{"question": question, "choices": choices, "answer": best} for question, choices, best in QUESTIONS]
    (tmp_path / "documents.json").write_text(json.dumps(documents))
    (tmp_path / "endings.yaml").write_text(TASK.format(path=tmp_path / "documents.json"))
    report: dict[str, Any] = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": MODEL,
            "base_url": server.url + "/v1/completions",
            "tokenizer_backend": "remote",
            "num_concurrent": 3,
            "max_retries": 1,
        },
        tasks=["endings"],
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


class _Scorer:
    """log P(ending | context) from the logits of transformers' own Mixtral, in float32."""

    def __init__(self) -> None:
        from transformers import MixtralForCausalLM

        torch.set_num_threads(1)
        self._model = MixtralForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
        self._tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))

    @torch.inference_mode()
    def __call__(self, context: str, ending: str) -> float:
        """Score the ending's tokens, cut as lm-eval does: tokenize context and ending together, without bos, and drop
        as many tokens in front as the context has by itself."""
        whole = self._tokenizer.encode(context + ending)
        start = len(self._tokenizer.encode(context))
        logits = self._model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        return sum(logits[i - 1, whole[i]].item() for i in range(start, len(whole)))
