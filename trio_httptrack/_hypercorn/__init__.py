"""Everything that knows Hypercorn's internals. In the order of reading:

* ``hooks``, ``install``: how a tracker gets onto a Config, and a Config to ``worker``;
* ``worker``: Hypercorn's own, with our names in it; ``lifespan``, ``settings``, ``statsd`` belong
  to it;
* ``connection``: one accepted stream, the heart of it all; ``transport`` and ``kernel`` are its
  bytes, ``timeouts`` and ``drain`` its time;
* ``protocol``: Hypercorn's protocols as the connection sees them; ``http1``, ``http2`` and
  ``websockets`` repair what is theirs, ``response_headers`` makes them faster;
* ``handler``: one request, between its protocol and the application.
"""
