"""What holds a payload in: cgroups, limits, namespaces. Decides nothing."""
