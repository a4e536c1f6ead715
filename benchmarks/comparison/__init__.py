"""What servers do with their connections, measured: ``python -m benchmarks.comparison``."""
