"""Requests that the OpenAPI document allows, and such that it does not, made by schemathesis, over a real socket.

Half of those for a model name one that is there, and half of the bodies are valid, so that what comes after a name and
a body is reached as well.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
from typing import Any

import requests
import schemathesis
from fuzz_target import Tally, Target, picture
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

PLAIN = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,
)
"""Of all that is made by hypothesis here: nothing is stored, and nothing depends on the time it takes."""

_A_ROUND = 20
_ADMIN = ("/unload", "/load", "/labels")


def fuzz_rest(target: Target, inputs: int, tally: Tally, first: int) -> None:
    logging.getLogger("schemathesis").setLevel(logging.ERROR)
    schema = schemathesis.openapi.from_dict(target.openapi)
    operations = [found.ok() for found in schema.get_all_operations()]
    with requests.Session() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in itertools.count(first):
            for operation, mode in itertools.product(operations, GenerationMode):
                left = inputs - tally.inputs
                if left <= 0:
                    return
                _some(target, session, operation, mode, min(left, _A_ROUND), number, tally)


def _some(
    target: Target,
    session: requests.Session,
    operation: Any,
    mode: GenerationMode,
    count: int,
    number: int,
    tally: Tally,
) -> None:
    @seed(number)
    @settings(PLAIN, max_examples=count)
    @given(operation.as_strategy(generation_mode=mode), st.booleans(), st.booleans())
    def ask(case: Any, named: bool, valid: bool) -> None:
        if named and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = _named(operation.path, target)
        if valid and operation.method == "post":
            _give_valid_body(case, operation.path)
        tally.begin()
        try:
            reply = case.call(base_url=target.http_url, session=session, timeout=60)
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, ValueError):
            tally.end("could not be sent")
        except requests.exceptions.RequestException as error:
            tally.end(type(error).__name__)
            tally.wrong(f"{operation.label}: {error}", repr(case))
        else:
            tally.answered(
                str(reply.status_code), f"{operation.label} {case!r} {reply.content[:300]!r}"
            )

    with contextlib.suppress(Unsatisfiable):  # there is nothing wrong that could be asked of it
        ask()


def _named(path: str, target: Target) -> str:
    if path.endswith(_ADMIN):
        return target.spare
    return target.pictures


def _give_valid_body(case: Any, path: str) -> None:
    if path.endswith("/infer"):
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}
        case.media_type, case.body = "application/json", {"inputs": [tensor]}
    elif path in ("/classify", "/classify/trace"):
        case.media_type, case.body = "application/octet-stream", picture()
    elif path == "/classify/events":
        case.media_type, case.body = "application/octet-stream", b"t,x,y,p\n1,2,3,1\n"
