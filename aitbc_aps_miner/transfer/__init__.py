"""Brings a job's inputs into its workspace, under the owner's rules of the network."""

from aitbc_aps_miner.transfer.http import HttpTransfer

__all__ = ["HttpTransfer"]
