"""`python -m services.inference_server`: one inference-server by hand."""

import sys

from common.service import main
from services.inference_server.server import run

sys.exit(main("inference", run))
