"""Faults while commands come in, and what must hold afterwards: ``python -m tests.faults``, docs/faults.md."""
