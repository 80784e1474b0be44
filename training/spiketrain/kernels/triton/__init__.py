"""The neurons' kernels for GPUs, in Triton. Needs the extra `gpu`; without it the plain loop runs.

neurons.py has the equations, forward.py and backward.py run T timesteps, slots.py steps samples whose states lie in slots;
plans.py, launch.py and pools.py call them. With TRITON_INTERPRET=1 in the environment, set before anything imports
Triton, they run in Triton's interpreter on CPU tensors: slowly, and with the same results.
"""

from spiketrain.kernels.triton.launch import run
from spiketrain.kernels.triton.plans import Plan, plan_of
from spiketrain.kernels.triton.pools import Affine, Batch, SlotLayer

__all__ = ["Affine", "Batch", "Plan", "SlotLayer", "plan_of", "run"]
