"""A Ray cluster of two nodes, one of which is killed: python cluster.py MODELS INPUT OUTPUT, in a network of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    from spikeserve.batch import Batch, Summary, run_batch

    models, there, into = (Path(each) for each in sys.argv[1:4])
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False)
    killed = []

    def progress(summary: Summary) -> None:
        if summary.done >= 2 and not killed:
            killed.append(summary.done)
            cluster.remove_node(second, allow_graceful=False)

    batch = Batch(
        there, into, models=(models,), model="pictures", workers=2, ray=cluster.address, piece=1,
        executor="reference",
    )  # fmt: skip
    summary = run_batch(batch, progress)
    sys.stdout.write(json.dumps({"killed": killed, "done": summary.done, "faults": summary.faults}))
    sys.stdout.flush()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
