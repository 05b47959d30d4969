"""Doors: they parse, call run, and show. No logic."""
