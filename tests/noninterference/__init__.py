"""Two-run noninterference: what one tenant sends never changes another tenant's replies.

engine.py runs the product's engine in this process, server.py the product's HTTP server around it for two API keys,
calls.py draws requests, replies.py makes replies comparable, comparison.py serves B alone, then beside A.
"""
