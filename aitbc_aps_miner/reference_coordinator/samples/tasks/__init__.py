"""The demo's Python tasks: `tasks.<module>` in a manifest names a module here."""
