"""`python -m services.inference_server`: one inference-server by hand."""

from common.service import main
from services.inference_server.server import run

raise SystemExit(main("inference", run))
