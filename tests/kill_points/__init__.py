"""Kills at chance moments: whether a training that was cut ends as if nothing had happened."""
