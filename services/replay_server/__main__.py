"""`python -m services.replay_server`: one replay-server by hand."""

from common.service import main
from services.replay_server.server import run

raise SystemExit(main("replay", run))
