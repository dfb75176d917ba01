"""The TOML configuration: model, loading with every problem at once, live reload."""
