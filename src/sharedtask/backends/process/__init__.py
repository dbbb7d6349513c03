"""Worker processes on this machine: a starter that forks them, a pool that feeds them."""
