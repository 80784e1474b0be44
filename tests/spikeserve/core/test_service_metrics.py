import pytest
from prometheus_client.parser import text_string_to_metric_families

from spikeserve.classify import ClassifyRequest
from spikeserve.metrics import RATE_SAMPLES, STAGES, Metrics

LABELS = {
    "model",
    "version",
    "exit",
    "layer",
    "route",
    "code",
    "stage",
    "outcome",
    "reason",
    "le",
    "signal",
    "device",
}


async def test_what_a_request_leaves_behind(write, classifier_of, picture, scraped):
    write("alpha")
    classifier = classifier_of()
    answers = [await classifier.classify(ClassifyRequest(picture(i))) for i in range(3)]
    metrics, who = classifier.metrics, {"model": "alpha", "version": "1"}
    for stage in ("decode", "queue", "compute"):
        assert scraped(metrics, "spikeserve_stage_seconds_count", stage=stage, **who) == 3
    assert scraped(metrics, "spikeserve_timesteps_used_sum", **who) == 12
    assert scraped(metrics, "spikeserve_batch_size_count", **who) == 12
    assert scraped(metrics, "spikeserve_batch_size_sum", **who) == 12
    total = sum(a.synaptic_operations for a in answers)
    assert scraped(metrics, "spikeserve_synaptic_operations_total", **who) == total
    for layer in answers[0].firing_rates:
        mean = sum(a.firing_rates[layer] for a in answers) / 3
        assert scraped(metrics, "spikeserve_firing_rate", layer=layer, **who) == pytest.approx(mean)
        assert scraped(metrics, "spikeserve_firing_rate_per_sample_count", layer=layer, **who) == 3
    assert scraped(metrics, "spikeserve_slots", **who) == 4
    assert scraped(metrics, "spikeserve_slots_in_use", **who) == 0
    assert scraped(metrics, "spikeserve_queue_depth", **who) == 0
    assert scraped(metrics, "spikeserve_model_loaded", **who) == 1
    assert scraped(metrics, "spikeserve_model_ready", **who) == 1


async def test_names_units_and_labels(write, classifier_of, picture):
    write("alpha")
    classifier = classifier_of()
    await classifier.classify(ClassifyRequest(picture()))
    classifier.metrics.request("/classify", "200", "alpha", "1")
    families = list(text_string_to_metric_families(classifier.metrics.render().decode()))
    ours = [f for f in families if f.name.startswith("spikeserve_")]
    assert len(ours) > 15
    assert all(f.documentation for f in ours)
    labels = {name for f in ours for sample in f.samples for name in sample.labels}
    assert labels <= LABELS
    assert not [f.name for f in ours if f.name.endswith(("_ms", "_us", "_milliseconds"))]


def count(metrics, name):
    return [s for f in metrics.registry.collect() for s in f.samples if s.name == name]


def test_clients_cannot_make_labels():
    metrics = Metrics()
    metrics.model("alpha", "1")
    for i in range(500):
        metrics.request("/classify", "404", f"model-{i}", "1")
        metrics.request("/classify", "404", "alpha", f"v{i}")
        metrics.request(f"/path/{i}", "404")
        metrics.stage("encode", 0.1, f"model-{i}", "1")
    assert len(count(metrics, "spikeserve_requests_total")) < 80
    assert {s.labels["model"] for s in count(metrics, "spikeserve_stage_seconds_count")} == {
        "alpha"
    }
    metrics.request("/classify", "200", "alpha", "1")
    (own,) = [
        s for s in count(metrics, "spikeserve_requests_total") if s.labels["model"] == "alpha"
    ]
    assert own.value == 1


def test_a_stage_that_does_not_exist_is_a_mistake():
    with pytest.raises(ValueError, match="stage 'think'"):
        Metrics().stage("think", 1.0, "alpha", "1")


def test_the_firing_rate_gauge_forgets_slowly(scraped):
    metrics = Metrics()
    model = metrics.model("alpha", "1")
    for _ in range(RATE_SAMPLES):
        model.sample({"a": 0.5}, 0, 0.0)
    model.sample({"a": 1.0}, 0, 0.0)
    value = scraped(metrics, "spikeserve_firing_rate", layer="a")
    assert value == pytest.approx(0.5 + 0.5 / RATE_SAMPLES)


def test_open_streams_are_asked_for_at_every_scrape(scraped):
    metrics, streams = Metrics(), []
    metrics.watch_streams(lambda: len(streams))
    assert scraped(metrics, "spikeserve_open_streams") == 0
    streams.append(1)
    assert scraped(metrics, "spikeserve_open_streams") == 1


def test_all_stages_of_a_model_are_there_from_the_start():
    metrics = Metrics()
    metrics.model("alpha", "1")
    stages = {s.labels["stage"] for s in count(metrics, "spikeserve_stage_seconds_count")}
    assert stages == set(STAGES)


def test_two_servers_in_one_process_do_not_share_metrics(scraped):
    first, second = Metrics(), Metrics()
    first.request("/classify", "200")
    assert scraped(first, "spikeserve_requests_total") == 1
    assert scraped(second, "spikeserve_requests_total") is None
