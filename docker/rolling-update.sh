#!/bin/sh
# Replaces the servers of docker/compose.replicas.yaml one after the other: told to
# stop, it finishes what it has, and the next one goes when the new one is healthy. Takes the options of `docker compose`:
#   docker compose -f docker/compose.yaml -f docker/compose.replicas.yaml build
#   docker/rolling-update.sh -f docker/compose.yaml -f docker/compose.replicas.yaml
set -eu
servers=$(docker compose "$@" ps --quiet spikeserve)
count=$(echo "$servers" | wc -w)
if [ "$count" -lt 2 ]; then
  echo "with fewer than two servers requests would be refused: docker compose ... up --scale spikeserve=2" >&2
  exit 1
fi
for server in $servers; do
  docker stop "$server" >/dev/null
  docker rm "$server" >/dev/null
  docker compose "$@" up --detach --no-build --no-deps --no-recreate --scale "spikeserve=$count" --wait spikeserve
  # The balancer asks once a second which servers there are, and twice a second whether they are ready.
  sleep 5
done
