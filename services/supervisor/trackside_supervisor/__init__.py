"""The supervisor service: decides what happens to attempts that end, die or hang."""
