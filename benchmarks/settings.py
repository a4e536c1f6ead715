"""Hypercorn's settings for the plain servers, as ``-c python:benchmarks.settings``."""

backlog = 4096  # so that 2,000 clients that connect at once need no retries of the kernel
keep_alive_max_requests = 10**9  # so that no connection is closed during a measurement
