"""Training job: from what is wired into the node to LoRA files on disk."""

from .running import run_training
from .wanted import Job, Named, Preview, Trained

__all__ = ["Job", "Named", "Preview", "Trained", "run_training"]
