"""gRPC: a thin converter between messages and what the server does.

The code in v1/ is generated from proto/ by proto/generate.py.
"""
