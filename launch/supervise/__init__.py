"""What a job runs: the supervisor, which starts the ranks, watches them and does what follows."""
