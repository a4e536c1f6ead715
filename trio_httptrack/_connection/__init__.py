"""One connection, from accept to close. Imports Trio, h11, hpack and wsproto, but no Hypercorn."""
