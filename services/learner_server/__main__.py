"""`python -m services.learner_server`: one learner-server by hand."""

from common.service import main
from services.learner_server.server import run

raise SystemExit(main("learner", run))
