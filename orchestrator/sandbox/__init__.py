"""Where everything that an agent wrote, or asked for, is run."""

from orchestrator.sandbox.base import Command, Completed, Limits, Mount, OnOutput, Sandbox

__all__ = ["Command", "Completed", "Limits", "Mount", "OnOutput", "Sandbox"]
