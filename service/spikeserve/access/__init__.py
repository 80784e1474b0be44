"""Who may ask for what, and how much of it. Free of any protocol."""

from spikeserve.access.caller import Caller, current_caller
from spikeserve.access.gate import Gate
from spikeserve.access.keyring import Keyring
from spikeserve.access.keys import KeyEntry, KeyLimits, Scope

__all__ = ["Caller", "Gate", "KeyEntry", "KeyLimits", "Keyring", "Scope", "current_caller"]
