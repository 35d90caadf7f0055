"""Render metric families as the text that Prometheus scrapes."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.observability.metric_families import FamilyGroup
from server.observability.vllm_metric_names import aliased

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MIN_RENDER_INTERVAL_S = 1.0


class Exposition(Collector):
    """The scrape: all families with the model's name on each sample, and again under vLLM's names."""

    def __init__(
        self,
        groups: Iterable[FamilyGroup],
        model_name: str,
        compat: Literal["vllm", "none"],
        clock: Callable[[], float],
        update_gauges: Callable[[], None],
    ) -> None:
        """`compat` "vllm" adds vLLM's names. `clock` returns monotonic seconds.

        `update_gauges` is called before each collection.
        """
        self._groups = list(groups)
        self._model_name = model_name
        self._compat = compat
        self._clock = clock
        self._update_gauges = update_gauges
        self._rendered = b""
        self._rendered_at_s = -MIN_RENDER_INTERVAL_S
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """Return the scrape in Prometheus' text format 0.0.4. It is rendered at most once a second."""
        now_s = self._clock()
        if now_s - self._rendered_at_s >= MIN_RENDER_INTERVAL_S:
            self._rendered = generate_latest(self._registry)
            self._rendered_at_s = now_s
        return self._rendered

    def collect(self) -> Iterable[Metric]:
        """Return the current families; prometheus_client calls this for each rendering."""
        self._update_gauges()
        families = [
            self._with_model_name(family) for group in self._groups for each in group for family in each.collect()
        ]
        return chain(families, aliased(families) if self._compat == "vllm" else ())

    def _with_model_name(self, family: Metric) -> Metric:
        """Copy a family with the label `model_name`, and without the _created series of prometheus_client."""
        copy = Metric(family.name, family.documentation, family.type)
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                copy.add_sample(sample.name, {"model_name": self._model_name, **sample.labels}, sample.value)
        return copy
