"""`python -m services.learner_server`: one learner-server by hand."""

import sys

from common.service import main
from services.learner_server.server import run

sys.exit(main("learner", run))
