"""Compare the speed of tracked and plain servers: ``python -m benchmarks`` prints the table."""
