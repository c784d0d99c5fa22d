"""Webhooks: events delivered by HTTP to whoever has neither a broker nor the time to ask.

CloudEvents' HTTP binding in structured mode, signed as Standard Webhooks wants it, with the handshake of
CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery". `command_api.delivery` is the process.
"""
