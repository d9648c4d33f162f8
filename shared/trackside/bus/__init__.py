"""The bus: the Redis keys, streams and channels, and who may do what with them."""
