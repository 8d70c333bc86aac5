"""`python -m services.env_server`: one env-server by hand."""

import sys

from common.service import main
from services.env_server.server import run

sys.exit(main("env", run))
