"""Requests and replies over ZeroMQ: `server.Server` answers, `client.Client` asks. Nothing else imports zmq."""
