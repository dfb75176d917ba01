"""Health, readiness, metrics and a page over local HTTP: reads, never decides."""
