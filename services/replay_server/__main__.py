"""`python -m services.replay_server`: one replay-server by hand."""

import sys

from common.service import main
from services.replay_server.server import run

sys.exit(main("replay", run))
