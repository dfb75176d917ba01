"""What this machine is and has free; looks, and never changes or decides anything.

Every source may lie, hang or be absent: a value that cannot be believed is None.
"""
