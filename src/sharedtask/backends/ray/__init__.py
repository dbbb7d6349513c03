"""The Ray backend. These are the only modules that import ray."""
