"""What sharedtask costs beside its peers and beside a hand-written equivalent: see README.md."""
