"""Everything that uses Hypercorn's internals. In the order of reading:

* ``hooks``, ``conn_state``, ``install``, ``entry``: how a tracker gets into a Config, and how
  Hypercorn calls ``worker`` with this Config;
* ``worker``: Hypercorn's worker with our connections; ``accept``, ``apps``, ``lifespan``,
  ``settings``, ``setting_types``, ``response_headers`` and ``statsd`` belong to it;
* ``check``: whether Hypercorn would start, without starting it.
"""
