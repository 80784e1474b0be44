"""The Helm chart: it renders what Kubernetes accepts, for all of its values, and refuses values that cannot work."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "spikeserve"
KUBERNETES = "1.33"

# Values as --set takes them, one case for each way to run it.
CASES = {
    "defaults": [],
    "everything": [
        "autoscaling.enabled=true",
        "autoscaling.cpuPercent=70",
        "networkPolicy.enabled=true",
        "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
        "serviceMonitor.enabled=true",
        "prometheusRule.enabled=true",
        "keys.secretName=keys",
        "tls.secretName=certificate",
        "image.digest=sha256:" + "0" * 64,
    ],
    "mutual-tls": ["tls.secretName=certificate", "tls.clientCa=ca.crt"],
    "gpu": ["gpu.enabled=true", "gpu.nodeSelector.pool=gpu", "image.tag=cuda"],
    "claim": ["models.source=claim", "models.claim.name=models", "models.watch=true"],
    "fetch": [
        "models.source=fetch",
        "models.fetch.command={cp,-r,/somewhere,/models}",
        "models.fetch.secretName=bucket",
    ],
}
# Not part of Kubernetes itself, so that its schemas do not know them.
CUSTOM = {"ServiceMonitor", "PrometheusRule"}

Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if (found := shutil.which("helm")) is not None:
        return found
    script = request.getfixturevalue("shared") / "containers" / "get_helm.sh"
    if not script.is_file():
        pytest.skip("helm is not installed")
    folder = tmp_path_factory.mktemp("helm")
    done = subprocess.run(["bash", str(script), str(folder)], capture_output=True, check=False)
    if done.returncode != 0 or not (folder / "helm").is_file():
        pytest.skip("helm is not installed, and cannot be had")
    return str(folder / "helm")


def run(helm: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm, *arguments], capture_output=True, text=True, check=False)


def options(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="session")
def render(helm: str) -> Render:
    def rendered(*values: str) -> list[dict[str, Any]]:
        done = run(helm, "template", "digits", str(CHART), *options(list(values)))
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return rendered


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(objects)["env"]}


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_no_fault(helm: str, case: str) -> None:
    done = run(helm, "lint", "--strict", str(CHART), *options(CASES[case]))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_accepts_what_is_rendered(render: Render, case: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    objects = render(*CASES[case])
    assert {"Deployment", "Service"} <= {each["kind"] for each in objects}
    for each in objects:
        if each["kind"] not in CUSTOM:
            validate.validate(each, KUBERNETES, strict=True)


def test_every_setting_that_the_chart_gives_is_one_of_the_servers(render: Render) -> None:
    from spikeserve.settings import PREFIX, Settings

    for values in CASES.values():
        for name in environment(render(*values)):
            assert name.removeprefix(PREFIX).lower() in Settings.model_fields


def test_settings_become_environment_variables(render: Render) -> None:
    given = environment(render("settings.slots=64", "settings.exit=balanced"))
    assert (given["SPIKESERVE_SLOTS"], given["SPIKESERVE_EXIT"]) == ("64", "balanced")


def test_the_pod_is_restricted_and_has_time_to_drain(render: Render) -> None:
    objects = render("drainSeconds=40", "preStopSeconds=7")
    pod = only(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 47
    assert environment(objects)["SPIKESERVE_DRAIN_SECONDS"] == "40"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    security = container(objects)["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} <= container(
        objects
    ).keys()


def test_secrets_are_named_and_never_held(render: Render) -> None:
    objects = render(*CASES["everything"])
    assert not [each for each in objects if each["kind"] == "Secret"]
    given = environment(objects)
    mounted = {each["mountPath"] for each in container(objects)["volumeMounts"]}
    assert given["SPIKESERVE_KEYS"].startswith("/etc/spikeserve/keys/")
    assert given["SPIKESERVE_TLS_CERT"].startswith("/etc/spikeserve/tls/")
    assert {"/etc/spikeserve/keys", "/etc/spikeserve/tls"} <= mounted


def test_replicas_are_left_to_the_autoscaler(render: Render) -> None:
    objects = render("autoscaling.enabled=true")
    assert "replicas" not in only(objects, "Deployment")["spec"]
    metrics = only(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [each["pods"]["metric"]["name"] for each in metrics] == [
        "spikeserve_open_streams",
        "spikeserve_queue_seconds",
    ]


def test_a_gpu_is_asked_for_on_nodes_that_have_one(render: Render) -> None:
    objects = render(*CASES["gpu"])
    pod = only(objects, "Deployment")["spec"]["template"]["spec"]
    assert container(objects)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"]


def test_the_alerts_are_those_of_the_checkout(render: Render) -> None:
    rules = only(render("prometheusRule.enabled=true"), "PrometheusRule")
    there = [
        group
        for path in sorted((CHART / "../../prometheus/rules").resolve().glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    assert there
    assert rules["spec"]["groups"] == there


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("replica=3", "replica"),
        ("replicas=-1", "replicas"),
        ("models.source=elsewhere", "source"),
        ("models.source=claim", "models.claim.name"),
        ("models.source=fetch", "models.fetch.command"),
        ("tls.clientCa=ca.crt", "tls.secretName"),
        ("settings.http_port=80", "settings.http_port"),
        ("settings.Slots=1", "Slots"),
        ("image.digest=latest", "digest"),
        ("service.httpPort=70000", "httpPort"),
    ],
)
def test_values_that_cannot_work_are_refused(helm: str, value: str, said: str) -> None:
    done = run(helm, "template", "digits", str(CHART), "--set", value)
    assert done.returncode != 0
    assert said in done.stderr


def test_an_autoscaler_without_a_metric_is_refused(helm: str) -> None:
    values = options(
        ["autoscaling.enabled=true", "autoscaling.openStreams=0", "autoscaling.queueMilliseconds=0"]
    )
    done = run(helm, "template", "digits", str(CHART), *values)
    assert done.returncode != 0
    assert "cpuPercent" in done.stderr
