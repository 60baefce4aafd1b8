"""metrics.py: what it counts, and its text as other programs read it: Prometheus' own, and its client in Python."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import needs
import pytest
from unit import promtool

from host import metrics
from host.metrics import Counter, Gauge, Histogram

try:
    from prometheus_client import parser
except ImportError:
    needs.requires(False, "prometheus_client")

ODD = 'a\\b "c"\nd \udc80 ä'


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test makes."""
    monkeypatch.setattr(metrics, "_families", [])


@pytest.fixture
def some() -> None:
    counter = Counter("test_things_total", 'Things, "counted" \\ here.', ("kind", "state"))
    for state in ("good", "good", ODD):
        counter.add("x", state)
    Gauge("test_free_bytes", "What is free.").set(5 << 40)
    Gauge("test_unknown_bytes", "What nobody knows.")
    histogram = Histogram("test_work_duration_seconds", "How long work took.", ("work",), (0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds, "map")


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.usefixtures("some")
def test_what_was_counted_is_read_by_others() -> None:
    found = samples(metrics.text({"socket": "/s"}))
    at = ("socket", "/s")
    assert found[("test_things_total", (("kind", "x"), at, ("state", "good")))] == 2
    assert found[("test_free_bytes", (at,))] == 5 << 40
    assert not any(name.startswith("test_unknown") for name, _ in found)


@pytest.mark.usefixtures("some")
def test_the_labels_of_others_can_be_anything() -> None:
    found = samples(metrics.text({"socket": ODD}))
    told = ODD.replace("\udc80", "?")
    assert (("test_things_total", (("kind", "x"), ("socket", told), ("state", told)))) in found


@pytest.mark.usefixtures("some")
def test_buckets_hold_all_that_is_not_longer() -> None:
    found = samples(metrics.text({}))
    buckets = {
        bound: found[("test_work_duration_seconds_bucket", (("le", bound), ("work", "map")))] for bound in BOUNDS
    }
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert found[("test_work_duration_seconds_count", (("work", "map"),))] == 4
    assert found[("test_work_duration_seconds_sum", (("work", "map"),))] == pytest.approx(7.65)


BOUNDS = ("0.1", "1.0", "+Inf")


@pytest.mark.usefixtures("some")
def test_each_family_says_what_it_is() -> None:
    read = {family.name: family for family in parser.text_string_to_metric_families(metrics.text({}))}
    # The parser leaves out the end of a counter's name.
    assert {name: family.type for name, family in read.items()} == {
        "test_things": "counter",
        "test_free_bytes": "gauge",
        "test_unknown_bytes": "gauge",
        "test_work_duration_seconds": "histogram",
    }
    assert read["test_things"].documentation == 'Things, "counted" \\ here.'


@promtool.needs_promtool
@pytest.mark.usefixtures("some")
def test_prometheus_finds_nothing_to_complain_of() -> None:
    promtool.check_metrics(metrics.text({"socket": ODD}))


def test_a_gauge_forgets_what_is_not_there_any_more() -> None:
    gauge = Gauge("test_waiting", "What waits.", ("work",))
    gauge.replace({("a",): 1, ("b",): 2})
    gauge.replace({("b",): 3})
    assert samples(metrics.text({})) == {("test_waiting", (("work", "b"),)): 3}
    Gauge("test_known", "What is known.").set(None)
    assert "\ntest_known " not in metrics.text({})


def test_many_threads_count() -> None:
    counter, histogram = Counter("test_total", "All."), Histogram("test_seconds", "All.", (), (1.0,))

    def count(_: int) -> None:
        counter.add()
        histogram.observe(0.5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(count, range(2000)))
    found = samples(metrics.text({}))
    assert (found[("test_total", ())], found[("test_seconds_count", ())]) == (2000, 2000)


def test_counting_costs_microseconds() -> None:
    """Far below what a request takes; the limit is for a busy machine."""
    counter = Counter("test_total", "All.", ("method", "result"))
    histogram = Histogram("test_seconds", "All.", ("method",), [float(bound) for bound in range(14)])
    took = min(_taken(counter, histogram))
    print(f"counting a request: {1e6 * took:.2f} us")
    assert took < 100e-6


def _taken(counter: Counter, histogram: Histogram) -> Iterator[float]:
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(1000):
            counter.add("Get", "ok")
            histogram.observe(0.02, "Get")
        yield (time.perf_counter() - began) / 1000
