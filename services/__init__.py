"""The services. Whichever starts, this is imported first."""

import os
import signal

if os.getpid() == 1:
    # In a container the kernel drops a signal that process 1 has no handler for. Until the service has one, which takes
    # seconds where torch is loaded, end as any other process would.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
