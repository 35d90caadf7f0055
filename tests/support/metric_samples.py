"""Metrics with a simulated clock, and their scrapes as a mapping."""

import re
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from server.observability.metrics import Metrics


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics, prefix: str = "") -> dict[str, float]:
    """Return the samples of a new scrape by `name{label=value,...}`, without the label model_name.

    `prefix`: of their names. Lines of others are not parsed.
    """
    found = {}
    text = metrics.exposition.render().decode()
    lines = re.findall(rf"^(?:# \w+ )?{prefix}.*\n", text, re.MULTILINE) if prefix else [text]
    for family in text_string_to_metric_families("".join(lines)):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "m"
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found, f"{key} is twice in the scrape"
            found[key] = sample.value
    return found


def fresh(**kwargs: object) -> Metrics:
    return Metrics("m", **kwargs)  # type: ignore[arg-type]
