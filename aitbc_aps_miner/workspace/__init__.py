"""All jobs' directories under one root; store.py says what lies where."""

from aitbc_aps_miner.workspace.jobdir import Workspace, read_control
from aitbc_aps_miner.workspace.store import Glance, StoredJob, Workspaces

__all__ = ["Glance", "StoredJob", "Workspace", "Workspaces", "read_control"]
