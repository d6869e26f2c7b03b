"""The bus: JetStream for what must not be lost, request and reply for questions, plain subjects for signals."""
