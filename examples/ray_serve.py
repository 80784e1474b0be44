"""Pictures in Ray Serve, in place of our server, for those who run Ray Serve already.

    serve run ray_serve:app
    curl --data-binary @garment.png localhost:8000

Settings are the server's, from the environment (SPIKESERVE_MODELS ...) of the cluster's machines. Replies and errors are those of POST /classify.
"""

from __future__ import annotations

import uuid

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from spikeserve.classify import Classifier, ClassifyRequest
from spikeserve.errors import ServiceError
from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.rest.body import read_body
from spikeserve.rest.problems import problem
from spikeserve.rest.replies import classify_json
from spikeserve.settings import load_settings


@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Spikes:
    def __init__(self) -> None:
        # A replica has one processor.
        self.settings = load_settings(torch_threads=1)
        metrics = Metrics()
        self.repository = Repository(self.settings, metrics)
        self.repository.load_all()
        self.classifier = Classifier(self.repository, metrics, self.settings)

    async def __call__(self, request: Request) -> Response:
        try:
            body = await read_body(request, self.settings.max_body_bytes)
            model = request.query_params.get("model")
            answer = await self.classifier.classify(ClassifyRequest(body, model))
        except ServiceError as error:
            return problem(error, request.headers.get("x-request-id", uuid.uuid4().hex))
        return Response(classify_json(answer), media_type="application/json")

    def check_health(self) -> None:
        """Ray Serve starts a replica anew where this fails."""
        if not self.repository.ready:
            raise RuntimeError("no model is ready")

    def __del__(self) -> None:
        self.classifier.close()
        self.repository.close()


app = Spikes.bind()
