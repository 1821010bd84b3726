"""Launching: turns a config into a submitted job and looks after that job until the run is done.

Receives configs and the machine it stands on; hands a run directory to the ranks that train in
it. Nothing here imports torch. `slurm` is the command, `request` what it asks for, `sweep` the
points of a sweep, `script` what sbatch reads; `submit` hands a job to submitit. `supervise` is what
the job runs. `runs` is the other command; its verbs are in `look_after`.
"""
