"""Hypercorn's settings for the plain servers. A module named in ``-c python:``."""

backlog = 4096  # or 2,000 connections at once wait for the kernel's retries
keep_alive_max_requests = 10**9  # or connections are reopened in the middle
keep_alive_timeout = 60
