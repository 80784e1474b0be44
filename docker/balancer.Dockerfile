# HAProxy before several servers (docker/compose.replicas.yaml), with the configuration of deploy/gateway/haproxy-dns.cfg.
ARG DEBIAN_IMAGE=debian:bookworm-slim

FROM ${DEBIAN_IMAGE}
LABEL org.opencontainers.image.title="spikeserve-balancer" \
      org.opencontainers.image.description="HAProxy that keeps each event stream with one spikeserve"
# The version is that of the base image's Debian.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends haproxy \
 && rm -rf /var/lib/apt/lists/*
# A number, since orchestrators cannot see of a name whether it is root.
USER 10002:10002
EXPOSE 8000 8001
ENTRYPOINT ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
