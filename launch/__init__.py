"""Launching: turns a config into a submitted job and looks after that job until the run is done.

Receives configs and the machine it stands on; hands a run directory to the ranks that train in
it. Nothing here imports torch. `slurm` is the command, `request` what it asks for, `sweep` the
points of a sweep, `script` what sbatch reads; `submit` hands a job to submitit, `supervisor` is
what the job runs, `follow` shows any run from its files.
"""
