"""What a map does when one of its items goes wrong, beside its peers: see docs/faults-table.md."""
