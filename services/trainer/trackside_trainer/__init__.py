"""The trainer service: runs attempts on this host's slots."""
