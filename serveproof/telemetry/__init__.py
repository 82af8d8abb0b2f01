"""What Prometheus reads, and what reads a server's metrics."""
