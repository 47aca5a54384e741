"""Ways to compute the loss and its gradient at flat positions: many chains at once, or one in the module itself."""

from slt.engines.batched import BatchedEngine
from slt.engines.choice import choose_engine
from slt.engines.in_place import InPlaceEngine

__all__ = ["BatchedEngine", "InPlaceEngine", "choose_engine"]
