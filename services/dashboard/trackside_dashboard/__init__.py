"""The dashboard service: shows the truth, and can do no harm."""
