"""Many inferences over one call: requests are computed side by side, and answered in the order in which they came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc

from spikeserve import logs
from spikeserve.errors import ServiceError
from spikeserve.grpc.boundary import Context, Unreadable, unreadable
from spikeserve.grpc.oip_convert import infer_response
from spikeserve.grpc.v2 import grpc_service_pb2 as pb
from spikeserve.oip.request import InferAnswer, InferRequest
from spikeserve.streams.terms import shutting_down

Parse = Callable[[pb.ModelInferRequest], Awaitable[InferRequest]]
Infer = Callable[[InferRequest], Awaitable[InferAnswer]]
Pending = asyncio.Future[InferAnswer]
UnderWay = asyncio.Queue[tuple[str, Pending] | None]
"""Ids of requests, and what will be their answers; None is the end."""

# A client asks for the call to end with the status of the first error, instead of an error message and going on.
_STRICT = "triton_grpc_error"
_FINAL = "triton_final_response"


async def serve_inferences(
    parse: Parse, infer: Infer, context: Context, most: int, leaving: Coroutine[Any, Any, None]
) -> None:
    """The conversation of one ModelStreamInfer call, with at most `most` requests under way: nothing is read from a
    client that does not read its answers. When `leaving` returns nothing more is read.

    Raises ServiceError: for a message that is no request, by the client's wish for any, and UNAVAILABLE after the
    answers to what was read, when the server leaves.
    """
    strict = dict(context.invocation_metadata() or ()).get(_STRICT) == "true"
    under_way: UnderWay = asyncio.Queue(most)
    reader = asyncio.create_task(_read(parse, infer, context, under_way))
    told = asyncio.create_task(leaving)
    told.add_done_callback(lambda _: reader.cancel())
    try:
        while (entry := await _next(under_way, reader)) is not None:
            await context.write(await _reply(*entry, strict))
    finally:
        told.cancel()
        reader.cancel()
        await asyncio.wait({reader, told})
        _noted(reader)
        while not under_way.empty():
            if (left := under_way.get_nowait()) is not None:
                left[1].cancel()
                _noted(left[1])


async def _read(parse: Parse, infer: Infer, context: Context, under_way: UnderWay) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        if isinstance(message, Unreadable):
            raise unreadable()
        answer: Pending
        try:
            # One after the other, as the requests of a sequence must not overtake each other.
            request = await parse(message)
        except ServiceError as error:
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(error)
        else:
            answer = asyncio.ensure_future(infer(request))
        try:
            await under_way.put((message.id, answer))
        except asyncio.CancelledError:
            answer.cancel()
            raise
    await under_way.put(None)


async def _next(under_way: UnderWay, reader: asyncio.Task[None]) -> tuple[str, Pending] | None:
    """The next request in order. Raises what ended the reader, once all before it are answered."""
    getting = asyncio.ensure_future(under_way.get())
    try:
        await asyncio.wait({getting, reader}, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done() and reader.done() and under_way.empty():
            if reader.cancelled():
                raise shutting_down()
            reader.result()
        return await getting
    finally:
        getting.cancel()


def _noted(future: asyncio.Future[Any]) -> None:
    """Nobody is left to be told how it failed, if it did; asyncio would log that."""
    if future.done() and not future.cancelled():
        future.exception()


async def _reply(request_id: str, pending: Pending, strict: bool) -> pb.ModelStreamInferResponse:
    try:
        reply = infer_response(await pending, request_id)
    except asyncio.CancelledError:
        pending.cancel()
        raise
    except Exception as error:
        failure = (
            error if isinstance(error, ServiceError) else logs.internal_error(error, "inference")
        )
        if strict:
            raise failure from None
        return pb.ModelStreamInferResponse(
            error_message=failure.message, infer_response=pb.ModelInferResponse(id=request_id)
        )
    reply.parameters[_FINAL].bool_param = True
    return pb.ModelStreamInferResponse(infer_response=reply)
