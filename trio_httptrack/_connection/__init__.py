"""One connection, from its accept to its end. Knows Trio, h11, h2 and wsproto; no Hypercorn."""
