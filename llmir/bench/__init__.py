"""Measurements: this machine's limits, and what an artifact makes of them.

Nothing here needs torch or the compiler, and numpy is loaded only where something is
measured: `worker` must be able to configure it first.
"""
