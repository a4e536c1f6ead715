"""What the connections of all workers are doing now, for whoever looks. In the order of reading:

* ``query``: what a viewer wants to see; ``report``: that of one worker; ``view``: of all of them;
* ``monitor``: makes a worker's reports, and knows its last minutes and its event loop's lag;
* ``directory``: where the workers of a machine find each other; ``serving`` and ``asking``: the
  two sides of the Unix sockets in it;
* ``words``: values as a person reads them; ``text``: a view as plain text.
"""
