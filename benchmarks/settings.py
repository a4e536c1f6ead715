"""Hypercorn's settings for the plain servers, as ``-c python:benchmarks.settings``."""

backlog = 4096  # or 2,000 clients that connect at once wait for the kernel's retries
keep_alive_max_requests = 10**9  # or connections are closed in the middle of it
