"""The report of an experiment: one page that opens from disk and says what bootstrapping gained, and why."""
