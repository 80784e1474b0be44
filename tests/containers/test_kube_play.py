"""The chart's rendered Deployment, run by `podman kube play`: probed, asked, and told to stop while it has requests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubelet import Podman, await_probe, load_image, podman_in
from load import load

from spikeserve.client import StreamClient, cut
from spikeserve.settings import BUNDLED_MODELS
from spiketrain.events import read_recording

pytestmark = [
    pytest.mark.containers,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.usefixtures("at_length"),
]

VALUES = (
    "replicas=1",
    "image.repository=localhost/spikeserve",
    "image.tag=latest",
    "image.pullPolicy=Never",
    "models.source=claim",
    "models.claim.name=models",
)
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "models"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


@dataclass(frozen=True)
class Pod:
    podman: Podman
    file: Path
    spec: dict[str, Any]
    address: str
    name: str

    @property
    def container(self) -> dict[str, Any]:
        (found,) = self.spec["containers"]
        return dict(found)

    def running(self) -> bool:
        return self.podman("ps", "--quiet", "--filter", f"name={self.name}-spikeserve") != ""

    def terminate(self) -> float:
        """As the kubelet does: preStop, SIGTERM, and after the grace period SIGKILL. Returns the seconds."""
        began = time.monotonic()
        grace = self.spec["terminationGracePeriodSeconds"]
        hook = self.container["lifecycle"]["preStop"]["exec"]["command"]
        self.podman("exec", f"{self.name}-spikeserve", *hook)
        left = grace - (time.monotonic() - began)
        self.podman("pod", "stop", "--time", str(int(left)), self.name)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def rendered(shared: Path, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    helm = shutil.which("helm")
    if helm is None:
        folder = tmp_path_factory.mktemp("helm")
        subprocess.run(["bash", shared / "containers" / "get_helm.sh", folder], check=False)
        if not (folder / "helm").is_file():
            pytest.skip("helm is not installed, and cannot be had")
        helm = str(folder / "helm")
    options = [part for value in VALUES for part in ("--set", value)]
    chart = checkout / "deploy" / "helm" / "spikeserve"
    text = subprocess.run(
        [helm, "template", "digits", chart, *options], capture_output=True, text=True, check=True
    ).stdout
    (found,) = [each for each in yaml.safe_load_all(text) if each["kind"] == "Deployment"]
    return found


@pytest.fixture
def pod(
    at_length: None, engine: dict[str, str], checkout: Path, rendered: Any, tmp_path: Path
) -> Iterator[Pod]:
    kept = os.environ.get("SPIKESERVE_TEST_ENGINE")
    folder = Path(kept) / "podman" if kept else Path(tempfile.mkdtemp(prefix="spikeserve-podman-"))
    podman = podman_in(folder)
    found = subprocess.run(
        ["docker", "image", "inspect", "spikeserve"], env=engine, capture_output=True, check=False
    )
    if found.returncode != 0:
        subprocess.run(
            ["docker", "compose", "build", "spikeserve"], cwd=checkout, env=engine, check=True
        )
    load_image(podman, engine, "spikeserve")
    claim, file = tmp_path / "claim.yaml", tmp_path / "deployment.yaml"
    claim.write_text(yaml.safe_dump(CLAIM))
    file.write_text(yaml.safe_dump(rendered))
    name = f"{rendered['metadata']['name']}-pod-0"
    try:
        podman("kube", "play", str(claim))
        models = Path(podman("volume", "inspect", "models", "--format", "{{.Mountpoint}}"))
        for each in ("fashion-clif", "nmnist-clif"):
            shutil.copy(BUNDLED_MODELS / f"{each}.safetensors", models)
        podman("kube", "play", str(file))
        infra = podman("pod", "inspect", name, "--format", "{{.InfraContainerID}}")
        address = podman(
            "inspect",
            infra,
            "--format",
            "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
        )
        yield Pod(podman, file, rendered["spec"]["template"]["spec"], address, name)
    finally:
        podman("pod", "rm", "--all", "--force", "--time", "0")
        podman("volume", "prune", "--force")
        if not kept:
            podman("rmi", "--all", "--force")
            shutil.rmtree(folder, ignore_errors=True)


def test_the_rendered_deployment_runs_and_drains(pod: Pod, checkout: Path) -> None:
    seconds = await_probe(pod.container["startupProbe"], pod.container, pod.address)
    for probe in ("readinessProbe", "livenessProbe"):
        await_probe(pod.container[probe], pod.container, pod.address)
    print(f"\nready after {seconds:.1f} s")  # noqa: T201

    # As the chart says: no root, nothing to write to but /tmp, no capabilities.
    inside = "import os; print(os.getuid(), os.access('/opt', os.W_OK), os.listdir('/models'))"
    said = pod.podman("exec", f"{pod.name}-spikeserve", "python", "-c", inside)
    assert said.startswith("10001 False [")
    assert "fashion-clif.safetensors" in said
    facts = "{{.HostConfig.ReadonlyRootfs}} {{.EffectiveCaps}}"
    assert pod.podman("inspect", f"{pod.name}-spikeserve", "--format", facts) == "true []"

    garment = (checkout / "examples" / "garment.png").read_bytes()
    events = read_recording(checkout / "examples" / "digit.npz")
    http, target = f"http://{pod.address}:8000", f"{pod.address}:8001"
    with StreamClient(target) as client:
        windows = list(client.stream(cut(events)))
    assert len(windows) > 10
    print(f"stream: {len(windows)} windows, {windows[-1].best.label}")  # noqa: T201

    # A pod that goes gets no new requests: the clients end while it sleeps in preStop, as endpoints and balancers see to.
    took: list[float] = []
    with load(http, target, garment) as made:
        made.more(50)
        end = threading.Thread(target=lambda: took.append(pod.terminate()))
        end.start()
        made.more(20)
    end.join()
    print(f"{made.answered} answered, {len(made.lost)} lost; stopped after {took[0]:.1f} s")  # noqa: T201
    assert made.lost == []
    assert took[0] < pod.spec["terminationGracePeriodSeconds"]
    status = pod.podman("inspect", f"{pod.name}-spikeserve", "--format", "{{.State.ExitCode}}")
    assert status == "0"
    pod.podman("kube", "down", str(pod.file))
    assert pod.podman("pod", "ps", "--quiet") == ""
