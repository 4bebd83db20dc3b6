from .fully_sharded import FullyShardedStrategy

__all__ = ["FullyShardedStrategy"]
