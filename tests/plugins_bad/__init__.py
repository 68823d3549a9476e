"""Plugins that are wrong on purpose, each in one way that its name tells."""
