"""Pages for people, from a run's files alone: ``report.html`` and comparisons of runs."""
