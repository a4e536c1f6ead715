"""Everything that knows Hypercorn's internals. In the order of reading:

* ``hooks``, ``install``: how a tracker gets onto a Config, and a Config to ``worker``;
* ``worker``: Hypercorn's own, with our names in it; ``accept``, ``apps``, ``lifespan``,
  ``settings``, ``setting_types``, ``response_headers`` and ``statsd`` belong to it;
* ``check``: what a start would find.
"""
