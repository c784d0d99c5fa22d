"""Backups of the event store, their restore, and the epoch that every restore opens."""
