"""What the server counts, for Prometheus."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector

from pardalis.inference import Finished

if TYPE_CHECKING:
    from pardalis.serve.service import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one service, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, service: "Service") -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "pardalis_requests", "Requests.", ["path", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "pardalis_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._answers = Counter(
            "pardalis_answers", "Answers that ended.", ["reason"], registry=registry
        )
        self._tokens = Counter(
            "pardalis_tokens", "Tokens.", ["kind", "modality"], registry=registry
        )
        self._images = Counter("pardalis_images", "Images generated.", registry=registry)
        self._verdicts = Counter(
            "pardalis_filter_verdicts", "Verdicts of filters.", ["filter", "side", "verdict"],
            registry=registry,
        )  # fmt: skip
        self._first_event = Histogram(
            "pardalis_first_event_seconds", "From a request to the first event of its answer.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._first_row = Histogram(
            "pardalis_first_image_row_seconds", "From a request to the first row of an image.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        active = Gauge("pardalis_active_answers", "Answers that are open.", registry=registry)
        active.set_function(lambda: len(service.open))
        ready = Gauge("pardalis_ready", "Whether requests are taken.", registry=registry)
        ready.set_function(lambda: float(service.accepting))

    def finished(self, event: Finished, reason: str) -> None:
        used = event.usage
        self._answers.labels(reason).inc()
        self._images.inc(used.images)
        self._first_event.observe(used.first_event_s)
        for kind, modality, count in (
            ("prompt", "text", used.prompt_text_tokens),
            ("prompt", "image", used.prompt_image_tokens),
            ("completion", "text", used.completion_text_tokens),
            ("completion", "image", used.completion_image_tokens),
        ):
            self._tokens.labels(kind, modality).inc(count)

    def first_image_row(self, seconds: float) -> None:
        self._first_row.observe(seconds)

    def judged(self, filter_name: str, side: str, verdict: str) -> None:
        self._verdicts.labels(filter_name, side, verdict).inc()

    def text(self) -> bytes:
        """Return all of them in the format of Prometheus."""
        return generate_latest(self._registry)
