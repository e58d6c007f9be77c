"""One workload on every device that a machine has: `llmir bench devices`."""
