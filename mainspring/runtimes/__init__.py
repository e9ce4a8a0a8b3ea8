"""Runtimes: whatever answers a Request. They do not know each other."""
