"""`python -m services.env_server`: one env-server by hand."""

from common.service import main
from services.env_server.server import run

raise SystemExit(main("env", run))
