"""Our queues and streams on RabbitMQ."""
