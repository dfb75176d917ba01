"""AITBC miner: a daemon that rents this machine's CPUs and GPUs to a job network."""

__version__ = "0.1.0"
