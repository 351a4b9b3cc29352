"""AMQP 0-9-1: connections, consumers and confirmed publishing. Knows nothing of registrations."""
