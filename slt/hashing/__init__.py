"""A hash of any object, the same in every process, for keys under which nothing stale is found."""

from slt.hashing.objects import Hashing

__all__ = ["Hashing"]
