"""Results as a folder that any static host can serve: an index, each run's report and data, a crate beside them."""
