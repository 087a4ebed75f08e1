"""Import this before PyTorch: threads that wait for work give the core away sooner.

GNU OpenMP's threads otherwise spin for long after every operation. Beside another busy process, a recurrent layer's
thousands of small operations then wait for threads that are not on a core: training took ten to thirty times as long,
and with this two to three times.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # read once, when the library is loaded

PARENT_PID = os.getppid()  # of the launcher, which may be killed in the seconds that PyTorch's import takes
