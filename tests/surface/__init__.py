"""The system as an attacker sees it: through the gateway, and at the APIs' own ports behind it."""
