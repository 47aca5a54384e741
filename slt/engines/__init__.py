"""Ways to compute the loss and its gradient at flat positions: many at once, one in the module, or in its shards."""

from slt.engines.batched import BatchedEngine
from slt.engines.choice import choose_engine
from slt.engines.in_place import InPlaceEngine
from slt.engines.sharded import ShardedEngine

__all__ = ["BatchedEngine", "InPlaceEngine", "ShardedEngine", "choose_engine"]
