"""Launchers for nats-server, PostgreSQL and SeaweedFS from wheels, and the supervisor that keeps them and the services running."""
