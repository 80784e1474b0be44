"""A little of what `make fuzz` does, the same inputs each time: bad input is answered and nothing else happens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spikeserve.app import Server

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
from fuzz_events import fuzz_event_files, fuzz_event_words, fuzz_events_served
from fuzz_models import fuzz_checkpoints
from fuzz_pictures import fuzz_pictures, fuzz_pictures_served
from fuzz_rest import fuzz_rest
from fuzz_rpc import fuzz_rpc, fuzz_wire
from fuzz_target import Tally, Target


@pytest.fixture(scope="module")
def target(threaded_server: Server, model_folder: Path) -> Iterator[Target]:
    url = f"http://127.0.0.1:{threaded_server.http_port}"
    made = Target(
        url, f"127.0.0.1:{threaded_server.grpc_port}", model_folder, "pictures", "moves", "spare"
    )
    yield made
    made.close()


@pytest.mark.parametrize(
    ("fuzz", "inputs"),
    [
        (fuzz_pictures_served, 50),
        (fuzz_events_served, 20),
        (fuzz_wire, 40),
        (fuzz_rest, 60),
        (fuzz_rpc, 150),
    ],
)
def test_a_server_answers(
    target: Target, fuzz: Callable[..., None], inputs: int, caplog: pytest.LogCaptureFixture
) -> None:
    tally = Tally(fuzz.__name__)
    fuzz(target, inputs, tally, 0)
    target.check(tally)
    assert tally.findings == []
    assert tally.inputs == inputs
    assert "incident" not in caplog.text


@pytest.mark.parametrize(
    ("fuzz", "inputs"), [(fuzz_pictures, 300), (fuzz_event_files, 200), (fuzz_event_words, 300)]
)
def test_a_decoder_refuses(fuzz: Callable[..., None], inputs: int) -> None:
    tally = Tally(fuzz.__name__)
    fuzz(inputs, tally, 0)
    assert tally.findings == []
    assert tally.inputs == inputs


def test_checkpoints_are_refused(model_folder: Path) -> None:
    tally = Tally("checkpoints")
    fuzz_checkpoints(model_folder / "moves.safetensors", 60, tally, 0)
    assert tally.findings == []
    assert tally.inputs == 60


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    tally = Tally("a family", tmp_path)
    for code in ("200", "400", "503", "504", "UNAVAILABLE", "500", "INTERNAL"):
        tally.begin()
        tally.answered(code, b"input " + code.encode())
    assert [finding.partition(" ")[0] for finding in tally.findings] == ["500", "INTERNAL"]
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [
        b"input 500",
        b"input INTERNAL",
    ]
