"""Memory and speed: checkpointing, compiling, offloading, and layers that keep less for the backward pass."""
