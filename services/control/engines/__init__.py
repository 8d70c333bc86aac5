"""What can run a plan: separate processes of this machine (`local`), or one process (`inline`)."""
