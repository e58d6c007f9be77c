"""The parity certificate: do devices, or two artifacts, give the same answers?  See compare.py."""
