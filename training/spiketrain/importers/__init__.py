"""Checkpoints of the papers' own codes (CLIF, ILIF, GLIF, IDE-FSNN, PLIF) as checkpoints of ours.

A file is read as data (`weights`), what it does not say is taken from its run's folder (`run_name`) or from the caller
(`Said`), and one module a repository says where each tensor goes (`clif`, `glif`, `ide`, `plif`). SpikingJelly's own
modules and weights, and NIR graphs, are read by `spiketrain.convert`.
"""

from spiketrain.importers.build import REPOSITORIES, Said, import_checkpoint

__all__ = ["REPOSITORIES", "Said", "import_checkpoint"]
