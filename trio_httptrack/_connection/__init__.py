"""One connection, from its accept to its end. Knows Trio, h11 and wsproto; no Hypercorn."""
