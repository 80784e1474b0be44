"""The gRPC server: our service, the Open Inference Protocol, health and reflection on one port."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from spikeserve.access import Gate
from spikeserve.classify import Classifier
from spikeserve.grpc.boundary import Boundary
from spikeserve.grpc.health import HealthService
from spikeserve.grpc.oip_service import GRPCInferenceService
from spikeserve.grpc.service import SpikeServe
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import add_SpikeServeServicer_to_server
from spikeserve.grpc.v2 import grpc_service_pb2 as oip_pb
from spikeserve.grpc.v2.grpc_service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from spikeserve.health import Health
from spikeserve.metrics import Metrics
from spikeserve.oip.infer import Inference
from spikeserve.refusals import Refusals
from spikeserve.repository import Repository
from spikeserve.settings import Settings
from spikeserve.streams import Streams

# What a message has besides a picture or events.
_ENVELOPE_BYTES = 1 << 16

SERVICES = (
    pb.DESCRIPTOR.services_by_name["SpikeServe"].full_name,
    oip_pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)


def create_server(
    settings: Settings,
    metrics: Metrics,
    repository: Repository,
    classifier: Classifier,
    streams: Streams,
    inference: Inference,
    refusals: Refusals,
    health: Health,
    gate: Gate,
) -> grpc.aio.Server:
    """A server without a port, to be started on a running event loop."""
    boundary = Boundary(metrics, refusals, gate, classifier.spans)
    server = grpc.aio.server(interceptors=[boundary], options=_options(settings))
    add_SpikeServeServicer_to_server(
        SpikeServe(settings, metrics, repository, classifier, streams, gate), server
    )
    add_GRPCInferenceServiceServicer_to_server(
        GRPCInferenceService(settings, repository, inference, health), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(health, SERVICES), server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((*SERVICES, health_name, reflection.SERVICE_NAME), server)
    return server


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        (
            "grpc.max_receive_message_length",
            max(settings.max_body_bytes, settings.max_message_bytes) + _ENVELOPE_BYTES,
        ),
        # A port that another process has is an error, not something to share.
        ("grpc.so_reuseport", 0),
        # A client that vanished without a word is noticed, and its streams are closed.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ask whether we are alive as often as we ask them.
        ("grpc.http2.max_ping_strikes", 0),
    ]
