"""Options in the query, read without the framework."""

from __future__ import annotations

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request

from spikeserve.rest.query import query_parameters, query_reader
from spikeserve.rest.upload import ClassifyOptions


def request(query: bytes) -> Request:
    return Request({"type": "http", "query_string": query, "headers": []})


def test_options_are_read_as_the_model_says():
    read = query_reader(ClassifyOptions)
    options = read(request(b"top_k=3&rates=false&exit=fast&model=a%2Bb"))
    assert options == ClassifyOptions(top_k=3, rates=False, exit="fast", model="a+b")
    assert options.model_fields_set == {"top_k", "rates", "exit", "model"}
    assert read(request(b"")) == ClassifyOptions()
    long = b"model=" + b"x" * 500
    assert read(request(long)).model == "x" * 500


@pytest.mark.parametrize(
    ("query", "place"),
    [
        (b"top_k=many", "top_k"),
        (b"top_k=0", "top_k"),
        (b"unknown=1", "unknown"),
        (b"exit=", "exit"),
    ],
)
def test_what_is_wrong_is_named(query, place):
    read = query_reader(ClassifyOptions)
    for _ in range(2):  # nothing that is wrong is remembered as right
        with pytest.raises(RequestValidationError) as error:
            read(request(query))
        assert error.value.errors()[0]["loc"] == ("query", place)


def test_all_options_are_described():
    described = {each["name"]: each for each in query_parameters(ClassifyOptions)}
    assert described.keys() == ClassifyOptions.model_fields.keys()
    assert all(each["in"] == "query" and each["description"] for each in described.values())
