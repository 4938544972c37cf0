"""What runs the jobs of studies: processes of this machine, a Ray cluster, a SLURM cluster. One file each."""
