"""Launching: turns a config into a submitted job and looks after that job until the run is done.

Receives configs and the machine it stands on; hands a run directory to the ranks that train in
it. Nothing here imports torch. `slurm` is the command and `request` what
it asks for, `sweep` makes the points of a sweep, `script` says a job to sbatch, `submit` hands it to
submitit,
`supervisor` is what the job runs, `follow` shows any run from its files.
"""
