"""What a run would take on a TPU slice, compiled ahead of time without one."""
