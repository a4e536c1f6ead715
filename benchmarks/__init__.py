"""How fast a tracked server is beside a plain one: ``python -m benchmarks`` prints the table."""
