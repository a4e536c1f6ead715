"""Everything that knows Hypercorn's internals; nothing else does."""
