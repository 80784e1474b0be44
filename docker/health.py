"""For the image's HEALTHCHECK: ends with status 0 if the server of this container is ready for requests.

The port and whether it is encrypted come from the environment, as for the server; not from a file of settings. A server
that asks for certificates of its clients is only asked whether it takes connections, because this client has none.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys

SECONDS = 4


def main() -> int:
    address = ("127.0.0.1", int(os.environ.get("SPIKESERVE_HTTP_PORT", "8000")))
    if os.environ.get("SPIKESERVE_TLS_CLIENT_CA"):
        socket.create_connection(address, SECONDS).close()
        return 0
    client = http.client.HTTPConnection(*address, timeout=SECONDS)
    if os.environ.get("SPIKESERVE_TLS_CERT"):
        # Its certificate names another host than this, and nothing secret is sent.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        client = http.client.HTTPSConnection(*address, timeout=SECONDS, context=context)
    client.request("GET", "/health/ready")
    return 0 if client.getresponse().status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
