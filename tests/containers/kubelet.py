"""What a kubelet does with a rendered pod and podman's `kube play` leaves out: probes over HTTP, preStop, the grace period."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Of runtimes, crun refuses a machine with both versions of cgroups; limits are set because podman would raise them, which
# needs a right that containers' hosts need not have.
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
infra_image = ""
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
PROGRAMS = ("podman", "runc", "catatonit")
LOAD_SECONDS = 900


@dataclass(frozen=True)
class Podman:
    folder: Path

    def __call__(self, *arguments: str, seconds: float = 120, **how: Any) -> str:
        places = {"root": "root", "runroot": "run", "tmpdir": "tmp"}
        options = [
            part for name, at in places.items() for part in (f"--{name}", str(self.folder / at))
        ]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
        # There is no systemd that would run its health checks.
        more = {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "DISABLE_HC_SYSTEMD": "true",
        }
        done = subprocess.run(
            ["podman", *options, *arguments],
            env=inherited | more,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            **how,
        )
        if done.returncode != 0:
            raise AssertionError(f"podman {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()


def podman_in(folder: Path) -> Podman:
    """Skips the test where podman, or the rights that it needs, are lacking."""
    if missing := [each for each in PROGRAMS if shutil.which(each) is None]:
        pytest.skip(f"needs {', '.join(missing)} (Debian: apt-get install podman runc catatonit)")
    folder.mkdir(exist_ok=True)
    folder = folder.resolve()  # podman remembers its places by their names
    (folder / "containers.conf").write_text(CONFIGURATION)
    podman = Podman(folder)
    try:
        podman("info")
    except AssertionError as error:
        pytest.skip(f"podman does not work here: {error}")
    return podman


def load_image(podman: Podman, engine: dict[str, str], image: str) -> None:
    """From the Docker engine, unless it is there already."""
    asked = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
    found = subprocess.run(asked, env=engine, capture_output=True, text=True, check=True).stdout
    if found.strip().removeprefix("sha256:") in podman("images", "--quiet", "--no-trunc"):
        podman("tag", found.strip().removeprefix("sha256:"), f"localhost/{image}")
        return
    with subprocess.Popen(["docker", "save", image], env=engine, stdout=subprocess.PIPE) as saved:
        podman("load", seconds=LOAD_SECONDS, stdin=saved.stdout)


def await_probe(probe: dict[str, Any], container: dict[str, Any], address: str) -> float:
    """Follows a probe over HTTP until it passes once; returns the seconds, fails where the kubelet would give up."""
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    url = f"http://{address}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
    began = time.monotonic()
    for _ in range(probe["failureThreshold"]):
        try:
            with urllib.request.urlopen(url, timeout=probe["timeoutSeconds"]) as reply:
                if reply.status == 200:
                    return time.monotonic() - began
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(probe["periodSeconds"])
    raise AssertionError(f"{url} did not pass {probe['failureThreshold']} times")
