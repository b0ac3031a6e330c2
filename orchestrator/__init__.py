"""Odyssey, orchestrator: plans to reviewed pull requests whose numbers were measured."""
