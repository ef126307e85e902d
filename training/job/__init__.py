"""Training job: from what is wired into the node to LoRA files on disk."""

from .running import run_training
from .wanted import Job, Preview, Trained

__all__ = ["Job", "Preview", "Trained", "run_training"]
