"""What the connections of all workers are doing now, for viewers. In the order of reading:

* ``query``: what a viewer wants to see; ``report``: the data of one worker; ``view``: the data of
  all workers;
* ``monitor``: makes a worker's reports, and knows its history and the lag of its event loop;
* ``directory``: where the workers of a machine find each other; ``serving`` and ``peers``: the
  server and the client of the Unix sockets in it;
* ``formatting``: values as people read them; ``text``: a view as plain text.
"""
