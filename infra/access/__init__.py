"""Who may do what: callers, their roles and the vessels that they are limited to; API keys and tokens."""
