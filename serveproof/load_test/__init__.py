"""Drives any server that speaks OpenAI's wire format, open loop, over HTTP, and says how it was served."""
