"""Starting ranks: what the environment says of them (torchrun, srun), a terminal's own, and Slurm jobs."""
